"""Noise of a measurement: how y varies about A(x), to draw from and to weigh by."""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.random import bits, noise

__all__ = ["GaussianNoise", "PoissonNoise"]

_STREAM = 0x9E45  # of its own, so that a sample's noise and its measurement's are independent


class GaussianNoise:
    """y = A(x) + sigma n.

    Args:
        sigma: standard deviation, at least 0.
    """

    def __init__(self, sigma: float) -> None:
        if not sigma >= 0:
            raise ValueError(f"sigma must be at least 0, got {sigma:g}")
        self.sigma = sigma

    def __call__(self, clean: Tensor, seed: int, *, first: int = 0) -> Tensor:
        """y for A(x) = `clean` (B, ...); row i depends on (seed, first + i)."""
        shape = tuple(clean.shape)
        return clean + self.sigma * noise(
            shape, seed, stream=_STREAM, first=first, dtype=clean.dtype, device=clean.device
        )

    def variance(self, clean: Tensor) -> float:
        """Var[y | A(x) = clean], the same everywhere: sigma^2."""
        return self.sigma**2

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | x) up to a constant, (B,), in nats."""
        if self.sigma == 0:
            raise ValueError("without noise p(y | x) has no density: sigma is 0")
        return -0.5 * ((y - clean) / self.sigma).square().flatten(1).sum(1)

    def __repr__(self) -> str:
        return f"GaussianNoise({self.sigma:g})"


class PoissonNoise:
    """y = 2 k / peak - 1,  k ~ Poisson(peak (A(x) + 1)/2): photons counted, for A(x) in [-1, 1].

    Args:
        peak: photons at white, positive; fewer is noisier.
    """

    def __init__(self, peak: float) -> None:
        if not peak > 0:
            raise ValueError(f"peak must be a positive number of photons, got {peak:g}")
        self.peak = peak

    def _rate(self, clean: Tensor) -> Tensor:
        return self.peak * (clean.clamp(-1, 1) + 1) / 2

    def __call__(self, clean: Tensor, seed: int, *, first: int = 0) -> Tensor:
        """y for A(x) = `clean` (B, ...); row i depends on (seed, first + i)."""
        rate = self._rate(clean).double()
        words = bits(tuple(clean.shape), seed, stream=_STREAM + 1, first=first, device=clean.device)
        u = (words.double() + 0.5) * 2.0**-32
        k = start = (rate - 10 * rate.sqrt()).clamp(min=0).floor()  # less than that comes once in 10^23 draws
        term = torch.exp(torch.xlogy(start, rate) - rate - torch.lgamma(start + 1))
        below = term.clone()
        for n in range(1, int(20 * self.peak**0.5) + 20):  # the quantile, by adding up the distribution
            k = k + (u > below)
            term = term * rate / (start + n)
            below = below + term
        return (2 * k / self.peak - 1).to(clean.dtype)

    def __repr__(self) -> str:
        return f"PoissonNoise({self.peak:g})"

    def variance(self, clean: Tensor) -> Tensor:
        """Var[y | A(x) = clean] = 2 (clean + 1)/peak, of clean's shape; below half a photon, that of half a photon.

        Linear in A(x): with E[x0 | x_t] for x it is the mean of the variance under p(x0 | x_t).
        """
        return 4 / self.peak**2 * self._rate(clean).clamp(min=0.5)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | x) up to a constant, (B,), in nats."""
        k, rate = self.peak * (y + 1) / 2, self._rate(clean).clamp(min=1e-8)
        return (k * rate.log() - rate).flatten(1).sum(1)
