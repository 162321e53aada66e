"""What all score distillation shares: noise an image, ask a frozen model, and push the image by the answer.

Each loss is |x - sg(x - g)|^2 / 2 by row, a sum over coordinates: its gradient in x is exactly the g of its paper, and
its value is |g|^2 / 2. x is an image, a latent, or what a field renders of its parameters: gradients flow on through
it, and none through the model.

    x_t = alpha x + sigma eps,    g = w(logsnr) (...)

The weight w is a function of logsnr that multiplies differences of eps: `weights.x0`, the default, is DreamFusion's
w = sigma^2 (on any schedule sigma^2/(alpha^2 + sigma^2)), `weights.v` is 1. The scale of guidance is the model's own:
`sf.guide(model.given(text=...), model, 25.0)`. Times are drawn from `window(low, high)`, which `annealed` narrows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import call
from suffuse.losses.times import Times, stratified
from suffuse.losses.weights import Weight
from suffuse.schedules import left

__all__ = ["annealed", "descend", "eps_of", "noised", "push", "weighed", "window"]


def push(x: Tensor, g: Tensor) -> Tensor:
    """A loss (B,) whose gradient in x is g."""
    return (x - (x - g).detach()).square().flatten(1).sum(1) / 2


def noised(model: Any, x: Tensor, times: Times) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, eps) at drawn times, t (B,), without a graph."""
    t, eps = times(len(x), x.device), torch.randn_like(x)
    alpha, sigma = model.schedule(t, like=x)
    return alpha * x.detach() + sigma * eps, t, eps


def eps_of(model: Any, x: Tensor, t: Any) -> Tensor:
    """The noise that a frozen model sees in x, like x."""
    with torch.no_grad():
        return call(model, x, t).eps


def weighed(model: Any, weight: Weight, t: Tensor, g: Tensor) -> Tensor:
    """w(logsnr) g."""
    return left(weight(model.schedule.logsnr(t)), g) * g


def window(low: float = 0.02, high: float = 0.98) -> Times:
    """t uniform between low and high, one draw in each of n equal parts.

    Raises:
        ValueError: not 0 < low <= high <= 1.
    """
    if not 0 < low <= high <= 1:
        raise ValueError(f"times must be 0 < low <= high <= 1, got {low:g} and {high:g}")
    return partial(_between, low=low, high=high)


def _between(n: int, device: torch.device, *, low: float, high: float) -> Tensor:
    return low + (high - low) * stratified(n, device)


def annealed(share: float, *, low: float = 0.02, high: float = 0.98, last: float = 0.3) -> Times:
    """`window(low, top)` with top = high - (high - last) sqrt(share): what is decided at high noise comes first.

    Args:
        share: of the optimisation that is done, in [0, 1]. low, high: at first. last: the highest time at the end.
    Raises:
        ValueError: share out of range; low above last.
    Zhu et al. 2024 (HiFA), for the square root.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share:g}")
    return window(low, high - (high - last) * share**0.5)


def descend(
    loss: Callable[[Tensor, float], Tensor],
    theta: Tensor,
    *,
    steps: int,
    lr: float = 0.03,
    seed: int = 0,
    field: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Minimise a loss over what a field renders, by Adam with a rate that falls to a tenth.

    x = descend(lambda x, share: losses.sds(guided, x, times=annealed(share)), torch.zeros(4, 3, 32, 32), steps=500)

    Args:
        loss: (image (B, ...), share of the steps done) -> (B,). theta: where it begins; (B, ...).
        steps, lr: of Adam. seed: of everything random: step k depends on (seed, k) only.
        field: theta -> image; None: theta is the image.
    Returns:
        theta at the end, detached.
    Raises:
        ValueError: steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    theta = theta.detach().clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=lr, betas=(0.9, 0.99))
    cuda = [theta.device] if theta.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.enable_grad():
        for k in range(steps):
            torch.manual_seed((seed << 24) + k)
            adam.param_groups[0]["lr"] = lr * 0.1 ** (k / steps)
            adam.zero_grad()
            loss(theta if field is None else field(theta), k / steps).sum().backward()
            adam.step()
    return theta.detach()
