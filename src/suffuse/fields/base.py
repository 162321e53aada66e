"""Fields: images as functions of parameters, field(theta) -> image, so that a loss of images trains the parameters.

Everything that is learned is in theta, (B, ...) with one image a row; the field itself is fixed. `field.start(n, seed)`
makes a first theta. What is rendered of one scene from several sides is a field that also holds the sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from suffuse.random import bits

__all__ = ["Field", "Pixels", "Siren"]


class Field(Protocol):
    """theta -> image."""

    def start(self, n: int, seed: int) -> Tensor:
        """n rows of first parameters; row i depends on (seed, i)."""
        ...

    def __call__(self, theta: Tensor) -> Tensor:
        """(B, ...) -> images (B, C, H, W) in [-1, 1] or about it, with a gradient."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The image is its own parameters.

    Args:
        shape: (C, H, W). spread: a first image is uniform in +-spread.
    """

    shape: tuple[int, ...]
    spread: float = 0.0

    def start(self, n: int, seed: int) -> Tensor:
        """(n, C, H, W)."""
        return self.spread * _uniform((n, *self.shape), seed)

    def __call__(self, theta: Tensor) -> Tensor:
        """theta itself."""
        return theta


@dataclass(frozen=True)
class Siren:
    """A small network from where to what: sin layers, one network for each row of theta.

    h_0 = p in [-1, 1]^2,   h_(i+1) = sin(omega_i (W_i h_i + b_i)),   image(p) = W h + b

    with omega on the first layer and 1 on the others (their weights, drawn for omega, are stored multiplied by it).

    Args:
        shape: (C, H, W) of the image; any other size may be asked of the same theta.
        width, depth: of the hidden layers. omega: the highest frequency at first.
    Sitzmann et al. 2020, section 3.2 for the start.
    """

    shape: tuple[int, int, int]
    width: int = 64
    depth: int = 3
    omega: float = 10.0

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer."""
        hidden = [(self.width, self.width)] * (self.depth - 1)
        return [(self.width, 2), *hidden, (self.shape[0], self.width)]

    @property
    def parameters(self) -> int:
        """How many numbers one image has."""
        return sum(out * (into + 1) for out, into in self.sizes)

    def start(self, n: int, seed: int) -> Tensor:
        """(n, parameters): W ~ U(+-1/2) in the first layer, U(+-sqrt(6/in)) after it, biases U(+-1/sqrt(in)).

        The last layer begins at a tenth of that, without a bias: a grey image.
        """
        draw, scale = _uniform((n, self.parameters), seed), []
        for i, (out, into) in enumerate(self.sizes):
            last = i == self.depth
            scale += [0.5 if i == 0 else math.sqrt(6 / into) * (0.1 if last else 1)] * (out * into)
            scale += [0.0 if last else 1 / math.sqrt(into)] * out
        return draw * torch.tensor(scale)

    def __call__(self, theta: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, parameters) -> (B, C, H, W), of another size if asked for.

        Raises:
            ValueError: theta of another width.
        """
        if theta.ndim != 2 or theta.shape[1] != self.parameters:
            raise ValueError(f"theta must be (B, {self.parameters}), got {tuple(theta.shape)}")
        h, w = size or self.shape[1:]
        rows, columns = ((2 * torch.arange(k, device=theta.device) + 1) / k - 1 for k in (h, w))
        x = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1).to(theta)  # (2, H W)
        y, first = x.expand(len(theta), -1, -1), 0
        for i, (out, into) in enumerate(self.sizes):
            weight = theta[:, first : first + out * into].unflatten(1, (out, into))
            bias = theta[:, first + out * into : first + out * (into + 1), None]
            first += out * (into + 1)
            y = torch.baddbmm(bias, weight, y)
            if i < self.depth:
                y = (y * (self.omega if i == 0 else 1.0)).sin()
        return y.unflatten(2, (h, w))


def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    """U(-1, 1), item by item as `sf.noise` is."""
    return ((bits(shape, seed, stream=0x0F1E1D).double() + 0.5) * 2.0**-31 - 1).float()
