"""Three parts of a U-Net in the form that runs fastest; what they compute does not depend on it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.attention import modulate

FINE = 1024
"""Pixels from which PyTorch's group normalisation is as fast with the channels last as with them first."""


def quick(h: Tensor, scale: int = 1) -> Tensor:
    """h in the layout that is fastest on a CPU when its map has grown by `scale`, (B, C, H, W) -> (B, C, H, W).

    oneDNN's float32 convolutions save a third with the channels last; in bfloat16 the norm loses more than they save.
    """
    if h.device.type != "cpu" or h.ndim != 4:
        return h
    last = h.dtype == torch.float32 and scale**2 * h.shape[2] * h.shape[3] >= FINE
    return h.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def told_norm(norm: nn.GroupNorm, h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift, (B, C, *spatial) and twice (B, C) -> (B, C, *spatial); Perez et al. 2018, eq. 1.

    Rows are told apart by the affine part of one wide norm, so that no pass over the map is spent on them.
    """
    if not h.is_contiguous() or torch.compiler.is_exporting():  # a file's norm has one number of groups for any rows
        return modulate(norm(h), *(y.view(*y.shape, *[1] * (h.ndim - 2)) for y in (shift, scale)))
    weight, bias = norm.weight * (1 + scale), modulate(norm.bias, shift, scale)
    wide = h.reshape(1, -1, *h.shape[2:])
    return F.group_norm(wide, len(h) * norm.num_groups, weight.flatten(), bias.flatten(), norm.eps).view_as(h)


def pointwise(conv: nn.Module, h: Tensor) -> Tensor:
    """A convolution of kernel 1, (B, C, *spatial) -> (B, C', *spatial).

    In bfloat16 on a CPU as a product of matrices, which spares oneDNN's change of layout and half of the time.
    """
    if type(conv) is not nn.Conv2d or h.device.type != "cpu" or h.dtype != torch.bfloat16 or not h.is_contiguous():
        return conv(h)
    weight, bias = conv.weight.flatten(1), conv.bias
    assert bias is not None
    return torch.baddbmm(bias[:, None], weight.expand(len(h), -1, -1), h.flatten(2)).unflatten(2, h.shape[2:])
