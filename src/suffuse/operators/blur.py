"""Blur: convolution with a kernel, by FFT.

circular:  y = F^-1 (k^ . F x)         the picture continues at its other side; everything is closed in Fourier space
zero:      y = the middle of k * (x with zeros around it); closed for a Gaussian, whose two axes part, and for pictures
           of up to 1024 pixels, whose matrix is decomposed once; otherwise by conjugate gradients
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Spectrum, batched, matrix
from suffuse.operators.resize import Separable

__all__ = ["Blur", "GaussianBlur", "MotionBlur"]

_SMALL = 1024  # pixels of a picture whose matrix is decomposed, in about a second


class Blur(LinearOperator):
    """Convolution with a kernel over the last two axes; the result has the picture's size.

    Args:
        kernel: (h, w), both odd; it is used as it is, so let it sum to 1.
        padding: "circular" or "zero".
    Raises:
        ValueError: a kernel of even size; an unknown padding.
    """

    def __init__(self, kernel: Tensor, padding: str = "circular") -> None:
        if padding not in ("circular", "zero"):
            raise ValueError(f"padding must be 'circular' or 'zero', got {padding!r}")
        if kernel.ndim != 2 or kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise ValueError(f"a kernel needs a middle: odd height and width, got {tuple(kernel.shape)}")
        self.kernel, self.padding = kernel.double(), padding
        self._known: dict[tuple[int, int], Tensor] = {}
        self._zero: dict[tuple[int, int], Spectrum | None] = {}

    def _frame(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.padding == "circular":
            return size
        return size[0] + self.kernel.shape[0] // 2, size[1] + self.kernel.shape[1] // 2

    def transfer(self, size: tuple[int, int]) -> Tensor:
        """k^ on the half plane of frequencies of pictures of this size."""
        if size not in self._known:
            (h, w), (H, W) = self.kernel.shape, size
            rows, columns = (torch.arange(h) - h // 2) % H, (torch.arange(w) - w // 2) % W
            where = (rows[:, None] * W + columns).flatten()
            wrapped = torch.zeros(H * W, dtype=torch.float64).index_add(0, where, self.kernel.flatten())
            self._known[size] = torch.fft.rfft2(wrapped.reshape(H, W))
        return self._known[size]

    def _filter(self, x: Tensor, turned: bool) -> Tensor:
        size = (batched(self, x, 2).shape[-2], x.shape[-1])
        frame = self._frame(size)
        k = self.transfer(frame)
        k = (k.conj() if turned else k).to(device=x.device, dtype=x.dtype.to_complex())
        out = torch.fft.irfft2(torch.fft.rfft2(x, s=frame) * k, s=frame)
        return out[..., : size[0], : size[1]]

    def __call__(self, x: Tensor) -> Tensor:
        return self._filter(x, False)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, True)

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum | None:
        size = (shape[-2], shape[-1])
        if self.padding == "zero":
            if size not in self._zero:
                self._zero[size] = self._decomposed(size)
            return self._zero[size]
        return Spectrum(
            torch.fft.fft2(torch.fft.irfft2(self.transfer(size), s=size)).abs(),
            lambda x: torch.fft.fft2(x, norm="ortho"),
            lambda z: torch.fft.ifft2(z, norm="ortho").real,
        )

    def _decomposed(self, size: tuple[int, int]) -> Spectrum | None:
        """With zeros around, as far as the matrix is small."""
        if size[0] * size[1] > _SMALL:
            return None
        _, s, Vt = torch.linalg.svd(matrix(self, (1, *size)))
        return Spectrum(
            s.reshape(size),
            lambda x: (x.flatten(-2) @ Vt.to(x).T).reshape(x.shape),
            lambda z: (z.flatten(-2) @ Vt.to(z)).reshape(z.shape),
        )

    def __repr__(self) -> str:
        return f"Blur({self.kernel.shape[0]} x {self.kernel.shape[1]}, {self.padding})"


class GaussianBlur(Blur):
    """Blur by a Gaussian, cut off at 4 standard deviations.

    Args:
        std: in pixels, positive. padding: "circular" or "zero".
    Raises:
        ValueError: std is not positive.
    """

    def __init__(self, std: float, padding: str = "circular") -> None:
        if not (std > 0 and math.isfinite(std)):
            raise ValueError(f"the blur's standard deviation must be positive, got {std:g}")
        at = torch.arange(-math.ceil(4 * std), math.ceil(4 * std) + 1, dtype=torch.float64)
        k = torch.exp(-0.5 * (at / std) ** 2)
        k = k / k.sum()
        super().__init__(k[:, None] * k, padding)
        self.std, self._k = std, k

    def _decomposed(self, size: tuple[int, int]) -> Spectrum:
        return Separable(*(self._along(n) for n in size)).spectrum(size)

    def _along(self, n: int) -> Tensor:
        """(n, n): the blur of one axis."""
        at, middle = torch.arange(n), len(self._k) // 2
        far = (at[:, None] - at).abs()
        return torch.where(far <= middle, self._k[(middle + far).clamp(max=len(self._k) - 1)], 0)

    def __repr__(self) -> str:
        return f"GaussianBlur({self.std:g}, {self.padding})"


class MotionBlur(Blur):
    """Blur along a straight line.

    Args:
        length: of the line in pixels, at least 1. angle: in degrees, anticlockwise from the right.
        padding: "circular" or "zero".
    Raises:
        ValueError: a length below 1.
    """

    def __init__(self, length: float, angle: float = 0.0, padding: str = "circular") -> None:
        if not length >= 1:
            raise ValueError(f"the length of a motion must be at least 1 pixel, got {length:g}")
        reach = math.ceil(length / 2)
        line = torch.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * math.ceil(length) + 1, dtype=torch.float64)
        a = math.radians(angle)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        rows = (1 - (at[:, None] + math.sin(a) * line).abs()).clamp(min=0)  # bilinear weights of points on the line
        columns = (1 - (at[:, None] - math.cos(a) * line).abs()).clamp(min=0)
        k = rows @ columns.T
        super().__init__(k / k.sum(), padding)
        self.length, self.angle = length, angle

    def __repr__(self) -> str:
        return f"MotionBlur({self.length:g}, {self.angle:g}, {self.padding})"
