"""Variational score distillation: as SDS, but against the score of the images there are, so that they spread.

    g = w(logsnr) (eps_hat(x_t) - eps_particles(x_t))

The second score belongs to the density of the particles under noise, so that g is the gradient of its KL divergence to
the model's. It is learned along by denoising the particles, with a LoRA on the model itself or a small network:

    particles' turn:    losses.denoising(particles, {"x": x.detach()})
    images' turn:       losses.vsd(guided, x, particles)

`VSD` takes both turns. With one particle and no second network it would be SDS. Guidance as for sampling (7.5) is
enough.

Wang et al. 2023 (ProlificDreamer), eq. 9 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser, networks
from suffuse.losses import weights
from suffuse.losses.denoising import denoising
from suffuse.losses.distillation.push import eps_of, noised, push, weighed, window
from suffuse.losses.times import Times
from suffuse.losses.weights import Weight

__all__ = ["VSD", "vsd"]


def vsd(model: Any, x: Tensor, particles: Any, *, times: Times | None = None, weight: Weight = weights.x0) -> Tensor:
    """A loss (B,) whose gradient in x is w (eps_hat - eps_particles).

    Args:
        model: a denoiser, guided if wanted; not trained. x: particles (B, ...), with a graph.
        particles: a denoiser of what x is like now, on the model's schedule; trained elsewhere.
        times, weight: as for `sds`.
    Raises:
        ValueError: the two denoisers live on different schedules.
    """
    _same(model, particles)
    noisy, t, _ = noised(model, x, times or window())
    return push(x, weighed(model, weight, t, eps_of(model, noisy, t) - eps_of(particles, noisy, t)))


class VSD:
    """`vsd` with the particles' turn before every push: one step of Adam on what x is now.

    particles = sf.adapters.lora(model, rank=8).given(text=prompts)
    x = distillation.descend(VSD(sf.guide(model.given(text=prompts), model, 7.5), particles), x, steps=500)

    Args:
        model: a denoiser, guided if wanted; not trained.
        particles: a `Denoiser` told what x is to show, never guided: the model with a LoRA, which alone is trained, or
            one around a network of its own.
        lr: of the particles' Adam. turns: it takes before each push.
        times: share of the optimisation that is done -> times of the push, such as `annealed`; by default `window()`.
        weight: as for `vsd`.
    Raises:
        ValueError: the two live on different schedules; nothing of the particles' network is trained, or what is
            trained belongs to the model; turns < 1.
    """

    def __init__(
        self,
        model: Any,
        particles: Denoiser,
        *,
        lr: float = 1e-3,
        turns: int = 1,
        times: Callable[[float], Times] | None = None,
        weight: Weight = weights.x0,
    ) -> None:
        _same(model, particles)
        trained = [p for net in networks(particles) for p in net.parameters() if p.requires_grad]
        kept = {id(p) for net in networks(model) for p in net.parameters()}
        if not trained or any(id(p) in kept for p in trained):
            why = "would train the model's own weights" if trained else "has nothing to train"
            raise ValueError(
                f"the particles' denoiser {why}: give sf.adapters.lora(model), or one around a network of its own"
            )
        if turns < 1:
            raise ValueError(f"turns must be at least 1, got {turns}")
        self.model, self.particles, self.turns, self.times, self.weight = model, particles, turns, times, weight
        self.adam = torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.99))

    def __call__(self, x: Tensor, share: float = 0.0) -> Tensor:
        """A loss (B,) whose gradient in x is that of `vsd`, for `descend`; the particles' network learns first."""
        with torch.enable_grad():
            for _ in range(self.turns):
                self.adam.zero_grad()
                denoising(self.particles, {"x": x.detach()}).mean().backward()
                self.adam.step()
        times = None if self.times is None else self.times(share)
        return vsd(self.model, x, self.particles, times=times, weight=self.weight)


def _same(model: Any, particles: Any) -> None:
    if particles.schedule != model.schedule:
        raise ValueError(
            f"the particles' denoiser lives on {particles.schedule}, the model on {model.schedule}: use .on(schedule)"
        )
