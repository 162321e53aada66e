"""The denoising loss of every parameterization: the network should answer the row it is read with.

x_t = alpha x0 + sigma eps,    loss = weight mean |output - (a x0 + b eps)|^2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.times import Times, stratified
from suffuse.losses.weights import Weight, on_output
from suffuse.schedules import left

__all__ = ["corrupt", "denoising", "error"]


def denoising(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    times: Times = stratified,
    weight: Weight | None = None,
    dropout: float = 0.0,
    coupling: Coupling = independent,
    offset: float = 0.0,
    perturb: float = 0.0,
    logvar: Callable[[Tensor], Tensor] | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Mean squared error of the network's raw output, by row.

    Args:
        model: what is trained.
        batch: "x" is clean data (B, ...); "eps", if given, the noise it is paired with; every other entry is a
            condition by name.
        times: (n, device) -> (n,) noise levels to train on, see `losses.times`.
        weight: of `losses.weights`; None weighs the raw output evenly.
        dropout: probability that a row is told nothing at all, for classifier-free guidance.
        coupling: of `losses.couplings`, chooses eps for x0.
        offset: standard deviation of noise that is the same in all pixels of a channel, added to eps: lets a model
            on a schedule with terminal signal learn brightness (Guttenberg 2023).
        perturb: eps is hidden under `perturb` times fresh noise in the input, not in the target: training sees states
            as wrong as sampling makes them (Ning et al. 2023, their gamma is 0.1).
        logvar: logsnr -> u, the loss becomes loss / e^u + u, see `Uncertain`.
        perceptual: (x0, D(x_t)) -> (B,), added: a distance as it is seen, such as `Perceptual`. Squared error hardly
            asks for what shapes and faces are told by; the price is that D is no longer the mean (Lin & Yang 2023).
    Returns:
        (B,) losses. Randomness is torch's own: `fit` seeds it by (seed, step).
    Raises:
        ValueError: dropout out of [0, 1]; dropout of a condition that has no null.
    """
    model, x0, eps, x, t = corrupt(model, batch, times, dropout, coupling, offset, perturb)
    out, alpha, sigma, row = model.output(x, t)
    loss = error(model, out, x0, eps, t, alpha, sigma, row, weight, logvar)
    if perceptual is None:
        return loss
    return loss + perceptual(x0, model.parameterization.read(out, x, alpha, sigma, row).x0)


def corrupt(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    times: Times,
    dropout: float,
    coupling: Coupling = independent,
    offset: float = 0.0,
    perturb: float = 0.0,
) -> tuple[Denoiser, Tensor, Tensor, Tensor, Tensor]:
    """(the model told its conditions, x0, eps, x_t, t) of a batch, with the arguments of `denoising`."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be in [0, 1], got {dropout:g}")
    x0 = batch["x"]
    model = model.given(**{name: value for name, value in batch.items() if name not in ("x", "eps")})
    if dropout > 0:
        model = model.forget(torch.rand(len(x0), device=x0.device) < dropout, x0)
    x0, eps = (x0, batch["eps"]) if "eps" in batch else coupling(x0)
    if offset > 0:
        eps = eps + offset * torch.randn(x0.shape[:2] + (1,) * (x0.ndim - 2), device=x0.device, dtype=x0.dtype)
    t = times(len(x0), x0.device)
    alpha, sigma = model.schedule(t, like=x0)
    seen = eps + perturb * torch.randn_like(eps) if perturb > 0 else eps
    return model, x0, eps, alpha * x0 + sigma * seen, t


def error(
    model: Denoiser,
    out: Tensor,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    row: tuple[Tensor, Tensor],
    weight: Weight | None,
    logvar: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The weighted squared error of a raw output, (B,)."""
    square = (out - model.parameterization.write(x0, eps, row)).square()
    if weight is not None:
        square = square * on_output(weight, left(model.schedule.logsnr(t), x0), alpha, sigma, row)
    loss = square.flatten(1).mean(1)
    if logvar is None:
        return loss
    u = logvar(model.schedule.logsnr(t))
    return loss * (-u).exp() + u
