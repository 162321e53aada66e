"""DiT: DiTTransformer2DModel on latents, told a class; its variance is learned.   Peebles & Xie 2023."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.folder import Folder, require
from suffuse.nets.conditions import Label

__all__ = ["DiT", "load"]


class DiT(nn.Module):
    """(z, index, label) -> output, of the latents' shape or of twice the channels."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.conditions = {"label": Label(transformer.config.num_embeds_ada_norm)}

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.transformer(x, timestep=t, class_labels=label, return_dict=False)[0]


def load(folder: Folder) -> Denoiser:
    """The denoiser of a saved DiT; `label` is what it may be told."""
    kind = require("diffusers").DiTTransformer2DModel
    transformer = folder.network("transformer", kind, "Transformer2DModel")
    return folder.denoiser(DiT(transformer), transformer.config, folder.codec())
