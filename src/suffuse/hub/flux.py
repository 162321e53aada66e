"""Flux: FluxTransformer2DModel, a flow on 2 x 2 patches of latents, told text by T5 and a summary of it by CLIP.

The dev model was distilled from guided ones: the scale of their guidance is a condition, `guidance`, and costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.folder import Folder, require
from suffuse.hub.text import Prompts, encoder
from suffuse.nets.conditions import Scalar

__all__ = ["Flux", "load"]

LENGTH = {True: 512, False: 256}  # T5's tokens, of the model with distilled guidance (dev) and without (schnell)


class Guidance:
    """The condition `guidance`: the scale that was distilled into the network, one or one a row; 3.5 by default."""

    def check(self, name: str, value: Any) -> Tensor:
        """Take a finite number, or (rows,) of them."""
        return Scalar(optional=False).check(name, value)

    def null(self, name: str, x: Tensor) -> Tensor:
        """3.5 for every row of x."""
        return torch.full((x.shape[0],), 3.5, device=x.device)


class Flux(nn.Module):
    """(z, sigma, text, guidance) -> velocity, of the latents' shape."""

    def __init__(self, transformer: Any, conditions: dict[str, Any]) -> None:
        super().__init__()
        self.transformer, self.conditions = transformer, conditions

    def forward(self, x: Tensor, t: Tensor, text: dict[str, Tensor], guidance: Tensor | None = None) -> Tensor:
        height, width = (n // 2 for n in x.shape[-2:])
        places = torch.cartesian_prod(
            torch.zeros(1, device=x.device),
            torch.arange(height, device=x.device, dtype=torch.float32),
            torch.arange(width, device=x.device, dtype=torch.float32),
        )
        out = self.transformer(
            hidden_states=F.pixel_unshuffle(x, 2).flatten(2).mT,
            timestep=t,
            guidance=guidance,
            encoder_hidden_states=text["states"],
            pooled_projections=text["pooled"],
            txt_ids=places.new_zeros(text["states"].shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out.mT.unflatten(2, (height, width)), 2)


def load(folder: Folder) -> Denoiser:
    """The denoiser of a saved Flux (dev or schnell); it is told `text`, and `guidance` where that was distilled."""
    transformer, codec = folder.network("transformer", require("diffusers").FluxTransformer2DModel), folder.codec()
    distilled = bool(transformer.config.guidance_embeds)
    clip = encoder(folder, "", "CLIPTextModel", cut=True)
    t5 = encoder(folder, "_2", "T5EncoderModel", length=LENGTH[distilled])
    text = Prompts(
        lambda name, prompts, clip, t5: {"states": t5(name, prompts)[0], "pooled": clip(name, prompts).pooler_output},
        [clip, t5],
    )
    conditions: dict[str, Any] = {"text": text} | ({"guidance": Guidance()} if distilled else {})
    shape = (transformer.config.in_channels // 4, *folder.latent(128, codec.factor, 2))
    return folder.denoiser(Flux(transformer, conditions), shape, codec, patch=2)
