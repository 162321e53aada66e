"""Variational score distillation: as SDS, but against the score of the images there are, so that they spread.

    g = w(logsnr) (eps_hat(x_t) - eps_particles(x_t))

The second score belongs to the density of the particles under noise, so that g is the gradient of its KL divergence to
the model's. It is learned along by denoising the particles, with a network that is small or a fine-tuned copy (LoRA):

    particles' turn:    loss = losses.denoising(particles, {"x": x.detach(), ...conditions})
    images' turn:       loss = losses.vsd(guided, x, particles)

With one particle and no second network it would be SDS. Guidance as for sampling (7.5) is enough.

Wang et al. 2023 (ProlificDreamer), eq. 9 and algorithm 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.losses import weights
from suffuse.losses.distillation.push import eps_of, noised, push, weighed, window
from suffuse.losses.times import Times
from suffuse.losses.weights import Weight

__all__ = ["vsd"]


def vsd(model: Any, x: Tensor, particles: Any, *, times: Times | None = None, weight: Weight = weights.x0) -> Tensor:
    """A loss (B,) whose gradient in x is w (eps_hat - eps_particles).

    Args:
        model: a denoiser, guided if wanted; not trained. x: particles (B, ...), with a graph.
        particles: a denoiser of what x is like now, on the model's schedule; trained elsewhere.
        times, weight: as for `sds`.
    Raises:
        ValueError: the two denoisers live on different schedules.
    """
    if particles.schedule != model.schedule:
        raise ValueError(
            f"the particles' denoiser lives on {particles.schedule}, the model on {model.schedule}: use .on(schedule)"
        )
    noisy, t, _ = noised(model, x, times or window())
    return push(x, weighed(model, weight, t, eps_of(model, noisy, t) - eps_of(particles, noisy, t)))
