"""Operators that move pixels and change none: they are orthogonal, pinv(A) = A.T. Views of visual anagrams among them.

Geng et al. 2024 (Visual Anagrams) for jigsaw, patch shuffle, inner rotation and skew as views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Spectrum, batched
from suffuse.random import bits

__all__ = ["Flip", "Permutation", "Turn", "inner_rotation", "jigsaw", "patch_shuffle", "skew"]


class _Orthogonal(LinearOperator):
    orthogonal = True

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        return Spectrum(torch.ones((), dtype=torch.float64), lambda x: x, lambda z: z)


class Turn(_Orthogonal):
    """The last two axes turned by k quarter turns, anticlockwise.

    Args:
        k: any whole number.
    """

    def __init__(self, k: int) -> None:
        self.k = k % 4

    def __call__(self, x: Tensor) -> Tensor:
        return torch.rot90(batched(self, x, 2), self.k, (-2, -1))

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.rot90(batched(self, y, 2), -self.k, (-2, -1))

    def __repr__(self) -> str:
        return f"Turn({self.k})"


class Flip(_Orthogonal):
    """Mirrored along axes.

    Args:
        axes: -1 swaps left and right, -2 up and down.
    Raises:
        ValueError: an axis counted from the front (0 would be the batch).
    """

    def __init__(self, axes: int | tuple[int, ...] = -1) -> None:
        self.axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if any(a >= 0 for a in self.axes):
            raise ValueError(f"axes are counted from the end, -1 is left and right, got {self.axes}")

    def __call__(self, x: Tensor) -> Tensor:
        return batched(self, x, -min(self.axes, default=0)).flip(self.axes)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def __repr__(self) -> str:
        return f"Flip({', '.join(map(str, self.axes))})"


class Permutation(_Orthogonal):
    """y_i = x_index[i] over the pixels of (B, ..., *size), the same in all channels.

    Args:
        index: a permutation of 0 .. n-1, n the number of pixels. size: of the last axes, () for n numbers.
    Raises:
        ValueError: not a permutation of as many pixels.
    """

    def __init__(self, index: Any, size: tuple[int, ...], *, name: str = "Permutation") -> None:
        self.index, self.size, self.name = torch.as_tensor(index).flatten(), tuple(size), name
        n = int(torch.Size(self.size).numel())
        if self.index.sort().values.tolist() != list(range(n)):
            raise ValueError(f"index must be a permutation of 0..{n - 1} for pixels of size {self.size}")
        self.inverse = self.index.argsort()

    @classmethod
    def random(cls, size: tuple[int, ...], seed: int) -> Permutation:
        """One chosen by seed."""
        return cls(_shuffled(int(torch.Size(size).numel()), seed), size)

    def _move(self, x: Tensor, index: Tensor) -> Tensor:
        n = len(self.size)
        if tuple(batched(self, x, n).shape[-n:]) != self.size:
            raise ValueError(f"{self!r} moves pixels of size {self.size}, got data of shape {tuple(x.shape[1:])}")
        return x.flatten(-n)[..., index.to(x.device)].reshape(x.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self._move(x, self.index)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._move(y, self.inverse)

    def __repr__(self) -> str:
        return f"{self.name}({' x '.join(map(str, self.size))})"


def _shuffled(n: int, seed: int, stream: int = 0) -> Tensor:
    return bits((n,), seed, stream=stream).argsort(stable=True)


def _places(size: tuple[int, int]) -> Tensor:
    return torch.arange(size[0] * size[1]).reshape(size)


def _blocks(size: tuple[int, int], block: tuple[int, int], what: str) -> Tensor:
    """(n, h, w) pixel numbers of the blocks of a picture."""
    (H, W), (h, w) = size, block
    if min(h, w) < 1 or H % h or W % w:
        raise ValueError(f"{what} of {h} x {w} pixels do not tile {H} x {W}")
    return _places(size).reshape(H // h, h, W // w, w).transpose(1, 2).reshape(-1, h, w)


def _joined(blocks: Tensor, size: tuple[int, int]) -> Tensor:
    (H, W), (h, w) = size, blocks.shape[1:]
    return blocks.reshape(H // h, W // w, h, w).transpose(1, 2).reshape(H, W)


def patch_shuffle(patch: int, size: tuple[int, int], seed: int) -> Permutation:
    """Square patches of a picture (H, W) in another order, chosen by seed.

    Raises:
        ValueError: the patches do not tile the picture.
    """
    blocks = _blocks(size, (patch, patch), "patches")
    return Permutation(_joined(blocks[_shuffled(len(blocks), seed)], size), size, name="patch_shuffle")


def jigsaw(pieces: int, size: tuple[int, int], seed: int) -> Permutation:
    """A picture (H, W) cut into pieces x pieces, which change places and, where they are square, turn.

    Raises:
        ValueError: the picture cannot be cut so.
    """
    if pieces < 1 or size[0] % pieces or size[1] % pieces:
        raise ValueError(f"a picture of {size[0]} x {size[1]} cannot be cut into {pieces} x {pieces} equal pieces")
    block = (size[0] // pieces, size[1] // pieces)
    blocks = _blocks(size, block, "pieces")
    blocks = blocks[_shuffled(len(blocks), seed)]
    if block[0] == block[1]:
        turns = bits((len(blocks),), seed, stream=1) % 4
        blocks = torch.stack([torch.rot90(b, int(k)) for b, k in zip(blocks, turns, strict=True)])
    return Permutation(_joined(blocks, size), size, name="jigsaw")


def inner_rotation(k: int, size: tuple[int, int], *, radius: float | None = None) -> Permutation:
    """The disc in the middle of a square picture turned by k quarter turns, the rest left.

    Args:
        radius: of the disc in pixels; by default 0.4 of the side.
    Raises:
        ValueError: the picture is not square.
    """
    H, W = size
    if H != W:
        raise ValueError(f"the inside of a square picture turns onto itself, got {H} x {W}")
    at = torch.arange(H) - (H - 1) / 2
    inside = at[:, None] ** 2 + at**2 <= (0.4 * H if radius is None else radius) ** 2
    places = _places(size)
    return Permutation(torch.where(inside, torch.rot90(places, k), places), size, name="inner_rotation")


def skew(shift: float, size: tuple[int, int]) -> Permutation:
    """Row i of a picture (H, W) moved right by round(shift i) pixels, around the edge."""
    rows = [torch.roll(row, round(shift * i)) for i, row in enumerate(_places(size))]
    return Permutation(torch.stack(rows), size, name="skew")
