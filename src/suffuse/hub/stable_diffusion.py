"""Stable Diffusion 1.x, 2.x and XL: UNet2DConditionModel on the latents of AutoencoderKL, told text by CLIP.

XL is also told a summary of the text and (height, width, top, left, height, width): the size of the picture that was
cropped, the crop's corner, and the size wanted, in pixels.   Podell et al. 2023, section 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.denoise import Denoiser, check_range
from suffuse.hub.autoencoder import KLCodec
from suffuse.hub.folder import Folder, require
from suffuse.hub.text import Encoder, Prompts, encoder
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


class Inpaint:
    """The condition `inpaint`: (image, mask), for a U-Net of 4 + 1 + 4 channels; told nothing, all is to be painted.

    Args:
        codec: that the image is encoded with, by the noise of seed 0.
    """

    def __init__(self, codec: KLCodec) -> None:
        self.codec = codec
        self._blank: Tensor | None = None

    def check(self, name: str, value: Any) -> Tensor:
        """Take images (rows, C, H, W) in [-1, 1] and masks (rows, 1, H, W), 1 where it is to be painted.

        Returns:
            (rows, 1 + c, h, w): the mask, and the latents of the image that is 0 where it is to be painted.
        Raises:
            TypeError, ValueError: not a pair, other shapes or numbers.
        """
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise TypeError(f"{name} must be (image, mask), got {type(value).__name__}")
        image, mask = (torch.as_tensor(v) for v in value)
        check_range(image, f"the image of {name}")
        if image.ndim != 4 or mask.shape != (len(image), 1, *image.shape[2:]):
            raise ValueError(
                f"{name} must have an image (rows, C, H, W) and a mask (rows, 1, H, W), "
                f"got {tuple(image.shape)} and {tuple(mask.shape)}"
            )
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError(
                f"the mask must be 0 or 1 (to be painted), got values from {mask.min():g} to {mask.max():g}"
            )
        mask = mask.to(image.dtype)
        with torch.no_grad():
            latent = self.codec.encode(image * (1 - mask), seed=0)
        return torch.cat([F.interpolate(mask, size=latent.shape[2:]), latent], 1)

    def null(self, name: str, x: Tensor) -> Tensor:
        """All of x's size is to be painted; encoded once for each size."""
        if self._blank is None or self._blank.shape[2:] != x.shape[2:]:
            blank = x.new_zeros(1, 3, *(self.codec.factor * n for n in x.shape[2:]))
            self._blank = self.check(name, (blank, blank[:, :1] + 1))
        return self._blank.to(x.device).expand(len(x), -1, -1, -1)


class StableDiffusion(nn.Module):
    """(z, index, text, size, inpaint) -> output, of the latents' shape."""

    def __init__(self, unet: Any, conditions: dict[str, Any]) -> None:
        super().__init__()
        self.unet, self.conditions = unet, conditions

    def forward(
        self, x: Tensor, t: Tensor, added: dict[str, Any] | None = None, inpaint: Tensor | None = None, **told: Any
    ) -> Tensor:
        x = x if inpaint is None else torch.cat([x, inpaint], 1)
        return self.unet(x, t, **self.arguments(**told), **(added or {}), return_dict=False)[0]

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
    text = Prompts(lambda name, prompts, clip: clip(name, prompts, masked=masked)[0], [clip])
    return _denoiser(folder, {"text": text})


def load_xl(folder: Folder) -> Denoiser:
    """The denoiser of a saved Stable Diffusion XL.

    Raises:
        ValueError: the refiner, which is told an aesthetic score.
    """
    if folder.index.get("requires_aesthetics_score"):
        raise ValueError(f"{folder.path} is a refiner, told an aesthetic score: only the base model is supported")
    encoders = encoder(folder, "", "CLIPTextModel"), encoder(folder, "_2", "CLIPTextModelWithProjection")

    def encode(name: str, prompts: Sequence[str], first: Encoder, second: Encoder) -> dict[str, Tensor]:
        a, b = first(name, prompts), second(name, prompts)
        return {"states": torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1), "pooled": b[0]}

    zeros = folder.index.get("force_zeros_for_empty_prompt", True)
    return _denoiser(folder, {"text": Prompts(encode, encoders, zeros=zeros)}, xl=True)


def _denoiser(folder: Folder, conditions: dict[str, Any], xl: bool = False) -> Denoiser:
    unet, codec = folder.network("unet", require("diffusers").UNet2DConditionModel), folder.codec()
    more = [key for key in _UNUSED.split() if unet.config.get(key) is not None]
    if unet.config.addition_embed_type != ("text_time" if xl else None):
        more.append("addition_embed_type")
    channels, told = unet.config.out_channels, unet.config.in_channels
    if more or channels != codec.net.config.latent_channels or told not in (channels, 2 * channels + 1):
        what = f"{more[0]}={unet.config[more[0]]!r}" if more else f"{unet.config.in_channels} channels in"
        raise ValueError(f"{folder.path}: a unet with {what} is not supported, only one told latents, time and text")
    if xl:
        conditions = conditions | {"size": Size(codec.factor)}
    if told > channels:
        conditions = conditions | {"inpaint": Inpaint(codec)}
    shape = (channels, *folder.latent(unet.config.sample_size, codec.factor))
    return folder.denoiser(StableDiffusion(unet, conditions), shape, codec)
