"""Small networks of every kind, what they may be told, and a batch for each."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from suffuse.nets import EDM2, MLP, DiT, Label, MMDiT, Scalar, Spatial, Tokens, UNet, Vector

SPECS = {
    "label": Label(5),
    "style": Vector(3),
    "to": Scalar(),
    "text": Tokens(4, vocab=9),
    "points": Tokens(2),
    "depth": Spatial(2, optional=True),
}
GIVEN = {
    "label": lambda b, size: torch.arange(b) % 5,
    "style": lambda b, size: torch.randn(b, 3),
    "to": lambda b, size: torch.rand(b),
    "text": lambda b, size: torch.randint(0, 9, (b, 4)),
    "points": lambda b, size: torch.randn(b, 6, 2),
    "depth": lambda b, size: torch.randn(b, 2, *size),
}
BUILD = {
    "mlp": partial(MLP, 3, width=16, depth=2),
    "unet1": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, dims=1),
    "unet2": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, heads=2),
    "unet3": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, dims=3),
    "dit1": partial(DiT, 2, width=16, depth=2, heads=2, dims=1),
    "dit2": partial(DiT, 2, width=16, depth=2, heads=2),
    "dit3": partial(DiT, 2, width=16, depth=2, heads=2, dims=3),
    "mmdit2": partial(MMDiT, 2, width=16, depth=2, heads=2),
    "dit2+": partial(DiT, 2, width=16, depth=3, heads=2, rope=True, qk_norm=True, swiglu=True, registers=2, skips=True),
    "adm2": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, head_width=8, resample="block"),
    "edm2": partial(EDM2, 2, width=8, multipliers=(1, 2), blocks=1, head_width=8, attention=(-1,)),
}
SIZES = {"mlp": (), "unet1": (12,), "unet2": (4, 6), "unet3": (2, 4, 6)}
SIZES |= {"dit1": (12,), "dit2": (4, 6), "dit3": (2, 4, 6), "mmdit2": (4, 6)}
SIZES |= {"dit2+": (4, 6), "adm2": (4, 6), "edm2": (4, 6)}
EVERY = pytest.mark.parametrize("kind", BUILD)
IMAGES = pytest.mark.parametrize("kind", [kind for kind in BUILD if kind != "mlp"])


def specs_for(kind: str) -> dict:
    without = {"mlp": ("depth",), "edm2": ("text", "points")}.get(kind, ())
    return {name: spec for name, spec in SPECS.items() if name not in without}


def randomise(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def batch(kind: str, rows: int = 3, specs: dict | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    size = SIZES[kind]
    x = torch.randn(rows, 3) if kind == "mlp" else torch.randn(rows, 2, *size)
    names = specs_for(kind) if specs is None else specs
    return x, torch.rand(rows), {name: GIVEN[name](rows, size) for name in names}


def doubled(told: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in told.items()}
