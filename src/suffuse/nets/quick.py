"""Parts of a U-Net in the form that runs fastest on a CPU; what they compute does not depend on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from suffuse.nets.attention import modulate

FINE = 1024
"""Pixels from which PyTorch's group normalisation is as fast with the channels last as with them first."""


def quick(h: Tensor, scale: int = 1) -> Tensor:
    """h in the layout that is fastest when its map has grown by `scale`, (B, C, H, W) -> (B, C, H, W).

    oneDNN's float32 convolutions save a third with the channels last; in bfloat16 the norm loses more than they save.
    """
    # A forward-mode derivative of the norm, and vmap, know one layout only.
    derived = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    if h.device.type != "cpu" or h.ndim != 4 or derived:
        return h
    last = h.dtype == torch.float32 and scale**2 * h.shape[2] * h.shape[3] >= FINE
    return h.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class Stem(nn.Conv2d):
    """A convolution whose answer is laid out for those that follow."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return quick(super().forward(x))


class ToldNorm(nn.GroupNorm):
    """norm(h) (1 + scale) + shift, (B, C, *spatial) and twice (B, C) -> (B, C, *spatial); Perez et al. 2018, eq. 1.

    Rows are told apart by the affine part of one wide norm, so that no pass over the map is spent on them.
    """

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        # The groups are then as many as there are rows, and a graph that is kept holds their number as a constant.
        kept = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if kept or not h.is_contiguous() or not len(h):
            return modulate(super().forward(h), *(y.view(*y.shape, *[1] * (h.ndim - 2)) for y in (shift, scale)))
        weight, bias = self.weight * (1 + scale), modulate(self.bias, shift, scale)
        wide = h.reshape(1, -1, *h.shape[2:])
        return F.group_norm(wide, len(h) * self.num_groups, weight.flatten(), bias.flatten(), self.eps).view_as(h)


class Pointwise(nn.Conv2d):
    """A convolution of kernel 1, (B, C, H, W) -> (B, C', H, W).

    In bfloat16 on a CPU, of maps with more pixels than channels, as a product of matrices: it spares oneDNN's change of
    layout, and half of the time.
    """

    def __init__(self, wide_in: int, wide_out: int) -> None:
        super().__init__(wide_in, wide_out, 1)

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        half = h.device.type == "cpu" and h.dtype == torch.bfloat16
        if not half or not h.is_contiguous() or h.shape[2] * h.shape[3] < self.in_channels or self.bias is None:
            return super().forward(h)
        weight = self.weight.flatten(1).expand(len(h), -1, -1)
        return torch.baddbmm(self.bias[:, None], weight, h.flatten(2)).unflatten(2, h.shape[2:])
