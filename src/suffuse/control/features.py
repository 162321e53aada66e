"""What controls are built of: the encoder of a picture, and layers that begin at zero."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.control.route import Route
from suffuse.nets.attention import zero

__all__ = ["HintEncoder", "Residual", "join"]


def conv(dims: int, wide_in: int, wide_out: int, kernel: int = 3, stride: int = 1) -> Any:
    """A convolution that keeps the size, or divides it by its stride."""
    return getattr(nn, f"Conv{dims}d")(wide_in, wide_out, kernel, stride, (kernel - 1) // 2)


def join(path: Route, shape: tuple[int, ...], width: int | None = None) -> nn.Module:
    """A layer at zero, from `width` channels to those of a tensor in the network, by default as many."""
    wide = path.width(shape)
    if path.is_tokens(shape):
        return zero(nn.Linear(width or wide, wide))
    return zero(conv(len(path.spatial), width or wide, wide, 1))


class HintEncoder(nn.Module):
    """Convolutions from a picture to features at the stem's resolution.

    Args:
        dims: spatial dimensions. channels: of the picture. width: of the features. shrink: by what its size is divided.
    """

    def __init__(self, dims: int, channels: int, width: int, shrink: int) -> None:
        super().__init__()
        now, layers = min(32, width), [conv(dims, channels, min(32, width))]
        for prime in _primes(shrink):
            wide = min(2 * now, width)
            layers += [nn.SiLU(), conv(dims, now, wide, 3 if prime == 2 else prime, prime)]
            now = wide
        self.layers = nn.Sequential(*layers, nn.SiLU(), conv(dims, now, width))

    def forward(self, picture: Tensor) -> Tensor:
        """(B, channels, *spatial) -> (B, width, *spatial / shrink)."""
        return self.layers(picture)


class Residual(nn.Module):
    """h + conv(silu(conv(h)))."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.first, self.second = conv(dims, width, width), conv(dims, width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape."""
        return h + self.second(F.silu(self.first(h)))


def flat(path: Route, shape: tuple[int, ...], h: Tensor) -> Tensor:
    """Features (B, C, *spatial) as the network has them there: an image or a sequence."""
    return h.flatten(2).mT if path.is_tokens(shape) else h


def _primes(n: int) -> list[int]:
    found, p = [], 2
    while n > 1:
        while n % p == 0:
            found.append(p)
            n //= p
        p += 1
    return found
