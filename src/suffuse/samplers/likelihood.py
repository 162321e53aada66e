"""The likelihood of data under a denoiser: the change of variables along the probability flow.

    log p(x_0) = log p_1(x_1) + D log(alpha_1 + sigma_1) + integral over tau of tr(du/dy),    dy/dtau = u = eps - x0

in y = x/(alpha + sigma), tau = sigma/(alpha + sigma), every row with adaptive steps of its own. The trace is exact,
with one backward pass a dimension, or Hutchinson's estimate v . (du/dy) v with v = +-1.

Chen et al. 2018 (neural ODE); Grathwohl et al. 2019 (FFJORD); Song et al. 2021 (score SDE), appendix D.2; Bekas et al.
2007 for Hadamard probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import check_range, evaluating, fresh, networks
from suffuse.random import bits
from suffuse.samplers.adaptive import Field, Rows, adaptive
from suffuse.samplers.flow import Loop, share, slope
from suffuse.schedules import Schedule

__all__ = ["bits_per_dim", "log_prob"]

_STREAM = 0x7ACE  # of its own, so that probes and noise of one seed are independent
EXACT = 64
"""Up to so many dimensions the trace is exact by default."""


def log_prob(
    denoiser: Any,
    x0: Tensor,
    *,
    trace: str | None = None,
    seed: int | None = None,
    probes: int = 1,
    first: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    end: float | None = None,
    prior: Callable[[Tensor], Tensor] | None = None,
    grad: bool = False,
) -> Tensor:
    """log p(x0) of each row, in nats.

    It is the density of what `sf.sample` makes of unit noise along the exact flow; a stochastic sampler of the same
    network has another. Assumed is that this density is smooth on the scale of the noise at `end`: eps is then
    proportional to sigma below, and the rest of the way is integrated with that.

    Args:
        denoiser: (x, t) -> Prediction with a `.schedule`, differentiable in x.
        x0: (B, ...) data in the denoiser's units.
        trace: "exact", D backward passes a call for D dimensions, or "hutchinson", `probes` of them; by default exact
            up to 64 dimensions.
        seed: of Hutchinson's probes, which need one; row i's depend on (seed, first + i) only.
        probes: how many are averaged: rows of a Walsh-Hadamard matrix with the same random signs for all, so that the
            estimate has no bias, variance in about 1/probes, and none left at D probes (D rounded up to a power of 2).
        first: number of the first row, when the batch is a part of a larger one.
        rtol, atol, method, end: as for `adaptive`; errors of the state and of the log density are controlled together.
        prior: (B, ...) -> (B,) log density of x at t = 1; by default N(0, (alpha_1^2 + sigma_1^2) I), where `sample`
            starts: that of data of mean 0 and unit variance, and of any data where alpha_1 = 0.
        grad: whether gradients flow through the whole run.
    Returns:
        (B,) in nats; `bits_per_dim` converts.
    Raises:
        ValueError: an unknown kind of trace; probes without a seed; fewer than one probe.
    """
    check_range(x0, "x0")
    size = x0[0].numel()
    trace = trace or ("exact" if size <= EXACT else "hutchinson")
    if trace not in ("exact", "hutchinson"):
        raise ValueError(f"trace must be 'exact' or 'hutchinson', got {trace!r}")
    if trace == "hutchinson" and seed is None:
        raise ValueError(f"Hutchinson's trace in {size} dimensions is random: give it a seed, or say trace='exact'")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    directions = None
    if trace == "hutchinson":
        assert seed is not None
        signs = bits(x0.shape, seed, stream=_STREAM, first=first, device=x0.device) >> 31
        directions = [
            (1 - 2 * (signs ^ _walsh(k, size, signs).reshape(x0.shape[1:]))).to(x0.dtype) for k in range(probes)
        ]
    modules = [m for net in networks(denoiser) for m in net.modules()]
    with evaluating(modules), torch.set_grad_enabled(grad):
        return _integrate(denoiser, x0, directions, adaptive(rtol, atol, method, end=end), prior)


def bits_per_dim(log_prob: Tensor, dims: int, *, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Tensor:
    """-log2 of the probability of a cell, by dimension: of data of `levels` equal cells between `low` and `high`.

    Args:
        log_prob: (B,) nats, of data to which uniform noise of one cell's width was added (dequantised).
        dims: how many dimensions a row has.
    Theis et al. 2016, section 3.1.
    """
    return -log_prob / (dims * math.log(2)) - math.log2((high - low) / levels)


def _walsh(k: int, size: int, like: Tensor) -> Tensor:
    """Row k of the Walsh-Hadamard matrix as bits: the parity of k & i, for i below `size`."""
    i = torch.arange(size, device=like.device)
    parity = torch.zeros_like(i)
    for place in range(k.bit_length()):
        if k >> place & 1:
            parity = parity ^ (i >> place & 1)
    return parity


def _divergence(ask: Callable[[Tensor], Tensor], y: Tensor, directions: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """u(y) and tr(du/dy), (B,)."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        y = y if keep and y.requires_grad else y.detach().requires_grad_()
        u = ask(y)
        flat, total = u.flatten(1), y.new_zeros(len(y))
        if directions is None:
            for i in range(flat.shape[1]):
                (row,) = torch.autograd.grad(flat[:, i].sum(), y, create_graph=keep, retain_graph=True)
                total = total + row.flatten(1)[:, i]
        else:
            for v in directions:
                (product,) = torch.autograd.grad(u, y, v, create_graph=keep, retain_graph=True)
                total = total + (product * v).flatten(1).sum(1) / len(directions)
    return (u, total) if keep else (u.detach(), total.detach())


def _integrate(
    denoiser: Any, x0: Tensor, directions: list[Tensor] | None, how: Any, prior: Callable[[Tensor], Tensor] | None
) -> Tensor:
    loop = Loop(fresh(denoiser), x0)
    schedule, low, size = denoiser.schedule, how.asked_first(denoiser), x0[0].numel()
    alpha, sigma = schedule(low)

    # below `low`: d(x/alpha)/drho = eps, rho = sigma/alpha, with eps in proportion to rho
    eps, spread = _divergence(lambda w: loop.ask(loop.denoiser, alpha * w, low, low).eps, x0, directions)
    y = (alpha * x0 + sigma / 2 * eps) / (alpha + sigma)
    start = sigma / (2 * alpha) * spread + size * math.log(alpha / (alpha + sigma))

    def field(index: Tensor | None) -> Field:
        part, some = loop.denoiser, directions
        if index is not None:
            part = part.rows(index) if hasattr(part, "rows") else part
            some = None if directions is None else [v[index] for v in directions]

        def both(state: Tensor, tau: Tensor) -> Tensor:
            y = state[:, :-1].unflatten(1, x0.shape[1:])
            u, divergence = _divergence(lambda y: slope(loop, part, y, tau), y, some)
            return torch.cat([u.flatten(1), divergence[:, None]], 1)

        return both

    state = torch.cat([y.flatten(1), start[:, None]], 1)
    rows = Rows(field, state, share(schedule, low), share(schedule, 1.0), how.pair, how.rtol, how.atol)
    while not rows.done:
        rows.advance()
    alpha, sigma = schedule(1.0)
    x1 = (alpha + sigma) * rows.y[:, :-1].unflatten(1, x0.shape[1:])
    top = _standard(x1, schedule) if prior is None else prior(x1)
    return top + size * math.log(alpha + sigma) + rows.y[:, -1]


def _standard(x: Tensor, schedule: Schedule) -> Tensor:
    alpha, sigma = schedule(1.0)
    var = alpha * alpha + sigma * sigma
    return -(x * x).flatten(1).sum(1) / (2 * var) - x[0].numel() / 2 * math.log(2 * math.pi * var)
