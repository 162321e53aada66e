"""Steering by particles: samples of p(x0) exp(lam reward(x0)), from a reward that is only asked for its value.

potential   G(x_t) = exp(lam reward(x0(x_t))),  x0(x_t) what the denoiser believes
weight      w <- w G(x_b)/G(x_a) after a step from a to b;  G(x_0) = exp(lam reward(x_0)) at the end

and resampling when the effective number of particles falls below a share of them. Particles move by the sampler alone,
so no transition density is needed, and the denoiser may itself be guided.

Approximated: nothing in the limit of many particles, whatever the potentials on the way: errors fall like
1/sqrt(particles). With few, one of them soon stands for all.

Singhal et al. 2025 (Feynman-Kac steering), potentials of differences; Wu et al. 2023 for the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import call, denoiser, stateless
from suffuse.guidance.particles import resample
from suffuse.parameterize import Prediction
from suffuse.samplers import ddpm, run

__all__ = ["steer"]

Reward = Callable[[Tensor], Tensor]


class _Asked:
    """The last belief, kept so that its reward costs no second evaluation."""

    def __init__(self, model: Any) -> None:
        self.model, self.x, self.p = model, None, None

    def at(self, x: Tensor, t: Any) -> Prediction:
        if self.p is None or x is not self.x:
            self.x, self.p = x, call(self.model, x, t)
        return self.p

    def take(self, index: Tensor, x: Tensor) -> None:
        assert self.p is not None
        self.x, self.p = x, self.p.rows(index)


def steer(
    model: Any,
    reward: Reward,
    noise: Tensor,
    *,
    particles: int,
    lam: float = 1.0,
    sampler: Any = None,
    steps: int | None = None,
    grid: Any = None,
    seed: int,
    first: int = 0,
    threshold: float = 0.5,
) -> Tensor:
    """Samples of p(x0) exp(lam reward(x0)), several groups at once.

    Args:
        model: any denoiser without per-run state; conditions are the same within a group.
        reward: (B, ...) data -> (B,) numbers; no gradient is taken of it.
        noise: (G K, ...), K = `particles` for each of G groups, one group after the other.
        lam: strength, 0 is off. sampler: a stochastic rule, by default `ddpm`.
        steps: of the sampler's grid; or grid: as for `sf.sample`.
        seed, first: as for `sf.sample`; `first` counts rows of `noise`.
        threshold: resample below this share of effective particles.
    Returns:
        (G K, ...), equally weighted within each group. Take one of a group for independent samples.
    Raises:
        ValueError: rows that are no multiple of `particles`; lam is not finite; a sampler without noise, whose copies
            would never part; rewards that are no (B,) numbers; a model with per-run state.
    """
    stateless(model, "particles are asked before a step is chosen")
    if particles < 1 or len(noise) % particles:
        raise ValueError(f"rows of noise must be a multiple of particles={particles}, got {len(noise)}")
    if not math.isfinite(lam):
        raise ValueError(f"lam must be a finite number, got {lam}")
    rule = ddpm if sampler is None else sampler
    if not getattr(rule, "stochastic", True):
        raise ValueError(f"{rule!r} draws no noise, so copies of a particle would never part: take ddpm or ddim(eta=1)")
    asked = _Asked(model)
    proposal = denoiser(_believed, parts=[model], name="steer", settings={"lam": lam}, extra={"asked": asked})

    def value(x0: Tensor) -> Tensor:
        r = reward(x0)
        if r.shape != (len(x0),) or not bool(r.isfinite().all()):
            raise ValueError(f"a reward must be {len(x0)} finite numbers, one a row, got shape {tuple(r.shape)}: {r}")
        return lam * r.reshape(-1, particles).to(torch.promote_types(r.dtype, torch.float32))

    log_w: Tensor | None = None
    before, x = torch.empty(0), noise
    for step in run(proposal, noise, sampler=rule, steps=steps, grid=grid, seed=seed, first=first):
        with torch.no_grad():
            if log_w is None:
                log_w = before = value(step.prediction.x0)
            after = value(step.x if step.s == 0 else asked.at(step.x, step.s).x0)
        # at the end, always; in every step `take`, so that a group's noise does not depend on when others resample
        index, log_w = resample(
            log_w + after - before, threshold if step.s > 0 else 2.0, seed, step=step.k, first=first // particles
        )
        step.take(index)
        x, before = step.x, after.flatten()[index].reshape(after.shape)
        if step.s > 0:
            asked.take(index, x)
    return x


def _believed(x: Tensor, t: Any, to: Any, model: Any, *, asked: _Asked) -> Prediction:
    return asked.at(x, t)
