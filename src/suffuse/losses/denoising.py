"""The denoising loss of every parameterization: the network should answer the row it is read with.

x_t = alpha x0 + sigma eps,    loss = mean |output - (a x0 + b eps)|^2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from suffuse.denoise import Denoiser

__all__ = ["denoising", "logit_normal", "stratified", "uniform"]

Times = Callable[[int, torch.device], Tensor]


def uniform(n: int, device: torch.device) -> Tensor:
    """t ~ U(0, 1), (n,)."""
    return torch.rand(n, device=device)


def stratified(n: int, device: torch.device) -> Tensor:
    """t ~ U(0, 1) with one draw in each of n equal parts: the same expectation, less variance (Kingma et al. 2021)."""
    return ((torch.arange(n, device=device) + torch.rand(n, device=device)) / n)[torch.randperm(n, device=device)]


def logit_normal(n: int, device: torch.device) -> Tensor:
    """logit(t) ~ N(0, 1): more of the middle, where a flow is hard (Esser et al. 2024, eq. 19)."""
    return torch.special.expit(torch.special.ndtri(stratified(n, device).clamp(1e-6, 1 - 1e-6)))


def denoising(
    model: Denoiser, batch: Mapping[str, Tensor], *, times: Times = stratified, dropout: float = 0.0
) -> Tensor:
    """Mean squared error of the network's raw output, by row.

    Args:
        model: what is trained.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        times: (n, device) -> (n,) noise levels to train on.
        dropout: probability that a row is told nothing at all, for classifier-free guidance.
    Returns:
        (B,) losses. Randomness is torch's own: `fit` seeds it by (seed, step).
    Raises:
        ValueError: dropout out of [0, 1]; dropout of a condition that has no null.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1], got {dropout:g}")
    x0 = batch["x"]
    model = model.given(**{name: value for name, value in batch.items() if name != "x"})
    if dropout > 0:
        model = model.forget(torch.rand(len(x0), device=x0.device) < dropout, x0)
    eps = torch.randn_like(x0)
    t = times(len(x0), x0.device)
    alpha, sigma = model.schedule(t, like=x0)
    out, _, _, row = model.output(alpha * x0 + sigma * eps, t)
    return (out - model.parameterization.write(x0, eps, row)).square().flatten(1).mean(1)
