"""Stable Diffusion 1.x, 2.x and XL: UNet2DConditionModel on the latents of AutoencoderKL, told text by CLIP.

XL is also told a summary of the text and (height, width, top, left, height, width): the size of the picture that was
cropped, the crop's corner, and the size wanted, in pixels.   Podell et al. 2023, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.folder import Folder, require
from suffuse.hub.text import Prompts, encoder
from suffuse.nets.conditions import Vector

__all__ = ["Size", "StableDiffusion", "load", "load_xl"]

_UNUSED = "class_embed_type encoder_hid_dim_type num_class_embeds time_cond_proj_dim"


class Size:
    """The condition `size`: (height, width) in pixels, or all six numbers; by default the size of x, not cropped.

    Args:
        factor: pixels per latent.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def check(self, name: str, value: Any) -> Tensor:
        """Take (2,), (6,), (rows, 2) or (rows, 6) numbers."""
        value = torch.as_tensor(value, dtype=torch.float32)
        if value.ndim and value.shape[-1] == 2:
            value = torch.cat([value, torch.zeros_like(value), value], -1)
        return Vector(6, optional=False).check(name, value)

    def null(self, name: str, x: Tensor) -> Tensor:
        """The size of x itself for every row."""
        height, width = (self.factor * n for n in x.shape[-2:])
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=x.device).expand(
            x.shape[0], -1
        )


class StableDiffusion(nn.Module):
    """(z, index, text, size) -> output, of the latents' shape."""

    def __init__(self, unet: Any, conditions: dict[str, Any]) -> None:
        super().__init__()
        self.unet, self.conditions = unet, conditions

    def forward(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        return self.unet(x, t, **self.arguments(**told), return_dict=False)[0]

    def arguments(self, text: Any, size: Tensor | None = None) -> dict[str, Any]:
        """What the unet, and a ControlNet beside it, is told."""
        if size is None:
            return {"encoder_hidden_states": text}
        return {
            "encoder_hidden_states": text["states"],
            "added_cond_kwargs": {"text_embeds": text["pooled"], "time_ids": size.to(text["pooled"].dtype)},
        }


def load(folder: Folder) -> Denoiser:
    """The denoiser of a saved Stable Diffusion 1.x or 2.x.

    Raises:
        ModelFileError: the tokenizer's files are missing.
        ValueError: a variant that is told more than text (distilled guidance, image variations).
    """
    clip = encoder(folder, "", "CLIPTextModel")
    masked = getattr(clip.net.config, "use_attention_mask", False)
    text = Prompts(lambda name, prompts: clip(name, prompts, masked=masked)[0], [clip])
    return _denoiser(folder, {"text": text})


def load_xl(folder: Folder) -> Denoiser:
    """The denoiser of a saved Stable Diffusion XL.

    Raises:
        ValueError: the refiner, which is told an aesthetic score.
    """
    if folder.index.get("requires_aesthetics_score"):
        raise ValueError(f"{folder.path} is a refiner, told an aesthetic score: only the base model is supported")
    first, second = encoder(folder, "", "CLIPTextModel"), encoder(folder, "_2", "CLIPTextModelWithProjection")

    def encode(name: str, prompts: Sequence[str]) -> dict[str, Tensor]:
        a, b = first(name, prompts), second(name, prompts)
        return {"states": torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1), "pooled": b[0]}

    zeros = folder.index.get("force_zeros_for_empty_prompt", True)
    return _denoiser(folder, {"text": Prompts(encode, [first, second], zeros=zeros)}, xl=True)


def _denoiser(folder: Folder, conditions: dict[str, Any], xl: bool = False) -> Denoiser:
    unet, codec = folder.network("unet", require("diffusers").UNet2DConditionModel), folder.codec()
    more = [key for key in _UNUSED.split() if unet.config.get(key) is not None]
    if unet.config.addition_embed_type != ("text_time" if xl else None):
        more.append("addition_embed_type")
    channels = unet.config.out_channels
    if more or channels != codec.net.config.latent_channels or unet.config.in_channels != channels:
        what = f"{more[0]}={unet.config[more[0]]!r}" if more else f"{unet.config.in_channels} channels in"
        raise ValueError(f"{folder.path}: a unet with {what} is not supported, only one told latents, time and text")
    if xl:
        conditions = conditions | {"size": Size(codec.factor)}
    return folder.denoiser(StableDiffusion(unet, conditions), unet.config, codec)
