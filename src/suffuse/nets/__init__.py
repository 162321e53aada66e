"""Networks, what they may be told, and the tap on their attention."""

from __future__ import annotations

from suffuse.nets.autoencoder import Autoencoder, Decoder, Encoder, LatentCodec
from suffuse.nets.cache import cached
from suffuse.nets.conditions import (
    Label,
    Scalar,
    Spatial,
    Tokens,
    Vector,
    spec_from_json,
    spec_to_json,
)
from suffuse.nets.dit import DiT
from suffuse.nets.edm2 import EDM2
from suffuse.nets.mlp import MLP
from suffuse.nets.mmdit import MMDiT
from suffuse.nets.stylegan import StyleDiscriminator, StyleGenerator
from suffuse.nets.taps import Attention, attend, sites, tapped
from suffuse.nets.unet import UNet
from suffuse.nets.words import Words

__all__ = [
    "EDM2",
    "MLP",
    "Attention",
    "Autoencoder",
    "Decoder",
    "DiT",
    "Encoder",
    "Label",
    "LatentCodec",
    "MMDiT",
    "Scalar",
    "Spatial",
    "StyleDiscriminator",
    "StyleGenerator",
    "Tokens",
    "UNet",
    "Vector",
    "Words",
    "attend",
    "cached",
    "sites",
    "spec_from_json",
    "spec_to_json",
    "tapped",
]
