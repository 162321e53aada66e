"""Operators that act pixel by pixel: identity, mask, greyscale, the negative of a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.operators.algebra import Affine
from suffuse.operators.base import LinearOperator, Spectrum
from suffuse.random import bits

__all__ = ["Greyscale", "Identity", "Mask", "negative"]


def _same(x: Tensor) -> Tensor:
    return x


class Scale(LinearOperator):
    """y = c x."""

    def __init__(self, c: float) -> None:
        self.c, self.orthogonal = float(c), abs(c) == 1

    def __call__(self, x: Tensor) -> Tensor:
        return self.c * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.c * y

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        return Spectrum(torch.tensor(abs(self.c), dtype=torch.float64), _same, _same)

    def __repr__(self) -> str:
        return f"Scale({self.c:g})"


class Identity(Scale):
    """y = x: denoising."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def __repr__(self) -> str:
        return "Identity()"


def negative(low: float = -1.0, high: float = 1.0) -> LinearOperator | Affine:
    """The colour negative x -> low + high - x of data between `low` and `high`.

    In [-1, 1] it is linear, -x. In any other range it is affine: `.T` is then that of its linear part, `.pinv` undoes
    the offset as well, and linear methods measure y - offset.
    """
    return Scale(-1.0) if low + high == 0 else Affine(Scale(-1.0), low + high)


class Mask(LinearOperator):
    """y = m x, of x's shape: 0 where nothing is measured. A.T = A, and pinv(A) = A.

    Args:
        known: true where x is measured; (H, W), (C, H, W) or anything that broadcasts against a data point.
    Raises:
        ValueError: values other than 0 and 1.
    """

    def __init__(self, known: Any) -> None:
        m = torch.as_tensor(known)
        if not bool(((m == 0) | (m == 1)).all()):
            raise ValueError("a mask is true (1) where x is measured and false (0) elsewhere, got other values")
        self.known = m.bool()

    @classmethod
    def box(cls, size: tuple[int, int], box: tuple[int, int, int, int], *, inside: bool = False) -> Mask:
        """All of a picture (H, W) but the box (top, left, height, width); or, `inside`, only the box.

        Raises:
            ValueError: the box is not within the picture.
        """
        (H, W), (top, left, h, w) = size, box
        if not (0 <= top < top + h <= H and 0 <= left < left + w <= W):
            raise ValueError(f"the box (top, left, height, width) = {box} does not lie within {H} x {W}")
        m = torch.full((H, W), not inside)
        m[top : top + h, left : left + w] = inside
        return cls(m)

    @classmethod
    def random(cls, size: tuple[int, int], *, keep: float, seed: int) -> Mask:
        """round(keep H W) pixels, chosen by seed.

        Raises:
            ValueError: keep is not between 0 and 1.
        """
        if not 0 <= keep <= 1:
            raise ValueError(f"keep is a share of the pixels, between 0 and 1, got {keep:g}")
        m = torch.zeros(size[0] * size[1], dtype=torch.bool)
        m[bits((len(m),), seed).argsort(stable=True)[: round(keep * len(m))]] = True
        return cls(m.reshape(size))

    @classmethod
    def text(cls, size: tuple[int, int], text: str, *, height: int | None = None) -> Mask:
        """All of a picture (H, W) but what letters in its middle cover.

        Args:
            height: of the letters in pixels; by default what fits.
        Raises:
            ValueError: the text covers no pixel.
        """
        from PIL import Image, ImageDraw, ImageFont

        H, W = size

        def extent(points: int) -> tuple[float, float, float, float]:
            return ImageFont.load_default(points).getbbox(text)

        def fits(points: int) -> bool:
            left, top, right, bottom = extent(points)
            return right - left <= W and bottom - top <= H

        points = height or next((p for p in range(2 * H, 5, -1) if fits(p)), 5)
        left, top, right, bottom = extent(points)
        canvas = Image.new("L", (W, H), 0)
        at = ((W - right + left) / 2 - left, (H - bottom + top) / 2 - top)
        ImageDraw.Draw(canvas).text(at, text, fill=255, font=ImageFont.load_default(points))
        covered = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).reshape(H, W) > 127
        if not bool(covered.any()):
            raise ValueError(f"the text {text!r} covers no pixel of a {H} x {W} picture")
        return cls(~covered)

    def _m(self, x: Tensor) -> Tensor:
        try:
            torch.broadcast_shapes(self.known.shape, x.shape[1:])
            fits = self.known.ndim < x.ndim and torch.broadcast_shapes(self.known.shape, x.shape[1:]) == x.shape[1:]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"a mask of shape {tuple(self.known.shape)} does not fit data {tuple(x.shape[1:])}")
        return self.known.to(x.device)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self._m(x), x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        return Spectrum(self.known.double(), _same, _same)

    def __repr__(self) -> str:
        return f"Mask({int(self.known.sum())} of {self.known.numel()})"


class Greyscale(LinearOperator):
    """y = sum_c w_c x_c over the channels of (B, C, ...), (B, 1, ...).

    Args:
        weights: C numbers; by default those of luma (ITU-R BT.601).
    """

    def __init__(self, weights: tuple[float, ...] = (0.299, 0.587, 0.114)) -> None:
        self.w = torch.tensor(weights, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[1] != len(self.w):
            raise ValueError(f"Greyscale mixes {len(self.w)} channels, got data of shape {tuple(x.shape[1:])}")
        return torch.einsum("bc...,c->b...", x, self.w.to(x))[:, None]

    def adjoint(self, y: Tensor) -> Tensor:
        if y.ndim < 2 or y.shape[1] != 1:
            raise ValueError(f"{self!r} measures 1 channel, got a measurement of shape {tuple(y.shape)}")
        return y * self.w.to(y).reshape(-1, *[1] * (y.ndim - 2))

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        _, s, Vt = torch.linalg.svd(self.w[None], full_matrices=True)
        s = torch.cat([s, s.new_zeros(len(self.w) - 1)]).reshape(-1, *[1] * (len(shape) - 1))

        def to(x: Tensor) -> Tensor:
            return torch.einsum("dc,bc...->bd...", Vt.to(x), x)

        def back(z: Tensor) -> Tensor:
            return torch.einsum("dc,bd...->bc...", Vt.to(z), z)

        return Spectrum(s, to, back)

    def __repr__(self) -> str:
        return f"Greyscale({', '.join(f'{w:g}' for w in self.w.tolist())})"
