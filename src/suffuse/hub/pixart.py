"""PixArt alpha and sigma: PixArtTransformer2DModel on latents, told text by T5; its variance is learned.

The 1024 pixel alpha model is also told (height, width) in pixels and their ratio.   Chen et al. 2023, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.folder import Folder, require
from suffuse.hub.text import Encoder, Prompts, encoder
from suffuse.nets.conditions import Vector

__all__ = ["PixArt", "load"]

LENGTH = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # T5's tokens, as trained


class Size:
    """The condition `size`: (height, width) in pixels; by default the size of x."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def check(self, name: str, value: Any) -> Tensor:
        """Take (2,) or (rows, 2) numbers."""
        return Vector(2, optional=False).check(name, value)

    def null(self, name: str, x: Tensor) -> Tensor:
        """The size of x itself for every row."""
        size = torch.tensor([x.shape[-2:]], dtype=torch.float32, device=x.device)
        return (self.factor * size).expand(x.shape[0], -1)


class PixArt(nn.Module):
    """(z, index, text, size) -> output, of twice the latents' channels."""

    def __init__(self, transformer: Any, conditions: dict[str, Any]) -> None:
        super().__init__()
        self.transformer, self.conditions = transformer, conditions

    def forward(self, x: Tensor, t: Tensor, text: dict[str, Tensor], size: Tensor | None = None) -> Tensor:
        ratio = None if size is None else size[:, :1] / size[:, 1:]
        return self.transformer(
            x,
            encoder_hidden_states=text["states"],
            encoder_attention_mask=text["mask"],
            timestep=t,
            added_cond_kwargs={"resolution": size, "aspect_ratio": ratio},
            return_dict=False,
        )[0]


def load(folder: Folder) -> Denoiser:
    """The denoiser of a saved PixArt alpha or sigma; `text` is what it is told."""
    transformer, codec = folder.network("transformer", require("diffusers").PixArtTransformer2DModel), folder.codec()
    t5 = encoder(folder, "", "T5EncoderModel", length=LENGTH[folder.pipeline])

    def encode(name: str, prompts: Sequence[str], t5: Encoder) -> dict[str, Tensor]:
        return {"states": t5(name, prompts, masked=True)[0], "mask": t5.tokens(name, prompts)[1]}

    conditions: dict[str, Any] = {"text": Prompts(encode, [t5])}
    if transformer.use_additional_conditions:
        conditions["size"] = Size(codec.factor)
    return folder.denoiser(PixArt(transformer, conditions), transformer.config, codec)
