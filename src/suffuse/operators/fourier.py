"""Magnetic resonance: some Fourier coefficients of a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.operators.base import LinearOperator, Spectrum, batched
from suffuse.random import bits

__all__ = ["MaskedFourier"]


class MaskedFourier(LinearOperator):
    """y = m F x with the orthonormal F, as real numbers: (B, ..., H, W) -> (B, ..., H, W, 2).

    For real x, A.T A = F* (m(k) + m(-k))/2 F: a coefficient and its mirror image say the same.

    Args:
        known: (H, W), true where a frequency is measured, frequency 0 first (as `torch.fft.fft2` has it).
    Raises:
        ValueError: not (H, W); values other than 0 and 1.
    """

    def __init__(self, known: Any) -> None:
        m = torch.as_tensor(known)
        if m.ndim != 2:
            raise ValueError(f"the mask of frequencies is (H, W), got {tuple(m.shape)}")
        if not bool(((m == 0) | (m == 1)).all()):
            raise ValueError(
                "a mask is true (1) where a frequency is measured and false (0) elsewhere, got other values"
            )
        self.known = m.bool()

    @classmethod
    def columns(cls, size: tuple[int, int], *, keep: float, seed: int, centre: float = 0.08) -> MaskedFourier:
        """Whole columns, as a scanner reads them: a share `centre` of the lowest, the others by seed up to `keep`.

        Zbontar et al. 2018 (fastMRI), section 4.
        """
        if not 0 <= centre <= keep <= 1:
            raise ValueError(f"shares 0 <= centre <= keep <= 1 of the columns, got centre={centre:g}, keep={keep:g}")
        H, W = size
        far = torch.fft.fftfreq(W).abs()
        order = torch.where(far.argsort(stable=True).argsort() < round(centre * W), -1, bits((W,), seed))
        m = torch.zeros(W, dtype=torch.bool)
        m[order.argsort(stable=True)[: round(keep * W)]] = True
        return cls(m.expand(H, W))

    def __call__(self, x: Tensor) -> Tensor:
        if batched(self, x, 2).shape[-2:] != self.known.shape:
            raise ValueError(f"{self!r} does not fit data of shape {tuple(x.shape[1:])}")
        return torch.view_as_real(torch.fft.fft2(x, norm="ortho") * self.known.to(x.device))

    def adjoint(self, y: Tensor) -> Tensor:
        z = torch.view_as_complex(batched(self, y, 3).contiguous()) * self.known.to(y.device)
        return torch.fft.ifft2(z, norm="ortho").real

    def spectrum(self, shape: tuple[int, ...]) -> Spectrum:
        m = self.known.double()
        mirrored = m.flip(0, 1).roll((1, 1), (0, 1))
        return Spectrum(
            ((m + mirrored) / 2).sqrt(),
            lambda x: torch.fft.fft2(x, norm="ortho"),
            lambda z: torch.fft.ifft2(z, norm="ortho").real,
        )

    def __repr__(self) -> str:
        return f"MaskedFourier({int(self.known.sum())} of {tuple(self.known.shape)})"
