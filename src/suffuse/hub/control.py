"""ControlNet and T2I-Adapter: a picture that says where things are, added to the features of Stable Diffusion's U-Net.

h_i <- h_i + strength c_i(z, t, text, picture)         (ControlNet: Zhang et al. 2023, eq. 2)
h_i <- h_i + strength c_i(picture)                     (T2I-Adapter: Mou et al. 2023, eq. 4)
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser, check_range
from suffuse.hub.folder import read_network, require
from suffuse.hub.stable_diffusion import StableDiffusion
from suffuse.training.files import ModelFileError, read_json

__all__ = ["Controlled", "Picture", "adapter", "controlnet"]


class Picture:
    """The condition `control`: images (rows, channels, H, W) in [-1, 1]; an image of NaN means "told nothing".

    Args:
        channels: of the image. factor: pixels per latent.
    """

    def __init__(self, channels: int, factor: int) -> None:
        self.channels, self.factor = channels, factor

    def check(self, name: str, value: Any) -> Tensor:
        """Take (rows, channels, H, W), or (channels, H, W) for all rows.

        Raises:
            TypeError, ValueError: another shape, or numbers beyond [-1, 1].
        """
        value = torch.as_tensor(value)
        value = value[None] if value.ndim == 3 else value
        if value.ndim != 4 or value.shape[1] != self.channels:
            raise ValueError(f"{name} must have shape (rows, {self.channels}, H, W), got {tuple(value.shape)}")
        check_range(value, name)
        if value.abs().max() > 1.01:
            raise ValueError(f"{name} must lie in [-1, 1], got {value.min():g} to {value.max():g}")
        return value

    def null(self, name: str, x: Tensor) -> Tensor:
        """NaN for every row of x, at x's size in pixels."""
        size = (len(x), self.channels, *(self.factor * n for n in x.shape[-2:]))
        return torch.full(size, torch.nan, device=x.device, dtype=x.dtype)


class Controlled(nn.Module):
    """A Stable Diffusion, or a controlled one, with one more picture under `name`."""

    def __init__(self, net: Any, control: Any, name: str, strength: float, picture: Picture) -> None:
        super().__init__()
        self.net, self.control, self.name, self.strength = net, control, name, strength
        self.conditions: dict[str, Any] = {**net.conditions, name: picture}

    def arguments(self, **told: Any) -> dict[str, Any]:
        """What the unet is told besides pictures."""
        told.pop(self.name, None)
        return self.net.arguments(**told)

    def forward(self, x: Tensor, t: Tensor, added: dict[str, Any] | None = None, **told: Any) -> Tensor:
        picture = told.pop(self.name)
        seen = ~picture.flatten(1).isnan().any(1)
        if seen.any() if picture.device.type == "cpu" else True:
            hint = picture.nan_to_num(-1.0) / 2 + 0.5
            weight = self.strength * seen.to(x.dtype)[:, None, None, None]
            added = _sum(added or {}, self._features(x, t, hint, told), weight)
        return self.net(x, t, added=added, **told)

    def _features(self, x: Tensor, t: Tensor, hint: Tensor, told: dict[str, Any]) -> dict[str, Any]:
        if type(self.control).__name__ == "T2IAdapter":
            return {"down_intrablock_additional_residuals": self.control(hint)}
        down, middle = self.control(x, t, controlnet_cond=hint, return_dict=False, **self.net.arguments(**told))
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def _sum(had: dict[str, Any], more: dict[str, Any], weight: Tensor) -> dict[str, Any]:
    out = dict(had)
    for name, value in more.items():
        parts = [weight * v for v in value] if isinstance(value, (list, tuple)) else weight * value
        before = had.get(name)
        if before is not None:
            parts = [a + b for a, b in zip(before, parts, strict=True)] if isinstance(parts, list) else before + parts
        out[name] = parts
    return out


def controlnet(
    model: Denoiser, path: str | os.PathLike[str], *, name: str = "control", strength: float = 1.0
) -> Denoiser:
    """A Stable Diffusion that can also be told a picture by a ControlNet; several are several calls.

    Args:
        model: read by `sf.hub.diffusers`, 1.x, 2.x or XL.
        path: a folder with config.json and diffusion_pytorch_model.safetensors of a ControlNetModel.
        name: of the condition: `model.given(control=picture)`, images in [-1, 1] at the size in pixels.
        strength: what its features are multiplied with.
    Returns:
        A denoiser; without a picture it is `model`, bit for bit.
    Raises:
        TypeError: the model is no Stable Diffusion.
        ValueError: the strength is not finite, the name is taken, or the ControlNet is of another width.
    """
    return _attach(model, path, "ControlNetModel", name, strength)


def adapter(model: Denoiser, path: str | os.PathLike[str], *, name: str = "adapter", strength: float = 1.0) -> Denoiser:
    """A Stable Diffusion that can also be told a picture by a T2I-Adapter; arguments as for `controlnet`."""
    return _attach(model, path, "T2IAdapter", name, strength)


def _attach(model: Denoiser, path: Any, kind: str, name: str, strength: float) -> Denoiser:
    if not isinstance(model.net, (StableDiffusion, Controlled)):
        raise TypeError(f"a {kind} steers Stable Diffusion 1.x, 2.x or XL, not {type(model.net).__name__}")
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")
    if name in model.conditions:
        raise ValueError(f"the model already has a condition {name!r}: choose another name=")
    folder = Path(path)
    config = read_json(folder / "config.json")
    if config.get("_class_name") != kind:
        raise ModelFileError(f"{folder} holds a {config.get('_class_name')}, not a {kind}")
    weight = next(model.net.parameters())
    net = read_network(folder, getattr(require("diffusers"), kind), weight.dtype).to(weight.device)
    ours = _unet(model.net).config.cross_attention_dim
    if kind == "ControlNetModel" and net.config.cross_attention_dim != ours:
        raise ValueError(
            f"{folder} was made for text of {net.config.cross_attention_dim} channels, this model has {ours}"
        )
    channels = net.config.conditioning_channels if kind == "ControlNetModel" else net.config.in_channels
    codec: Any = model.codec
    return replaced(model, Controlled(model.net, net, name, strength, Picture(channels, codec.factor)))


def _unet(net: Any) -> Any:
    while isinstance(net, Controlled):
        net = net.net
    return net.unet


def replaced(model: Denoiser, net: Any) -> Denoiser:
    """The same denoiser, told the same, with another network."""
    new = copy.copy(model)
    new.net, new.conditions = net, dict(net.conditions)
    return new
