"""Classifier score distillation: only the direction from "told nothing" to "told this", which guidance amplifies.

    g = w(logsnr) (eps_pos(x_t) - eps_neg(x_t))

It is what of SDS's gradient grows with the scale of guidance; the noise of eps is gone.

Yu et al. 2024 (text-to-3D with classifier score distillation).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import together
from suffuse.losses import weights
from suffuse.losses.distillation.push import noised, push, weighed, window
from suffuse.losses.times import Times
from suffuse.losses.weights import Weight

__all__ = ["csd"]


def csd(pos: Any, neg: Any, x: Tensor, *, times: Times | None = None, weight: Weight = weights.x0) -> Tensor:
    """A loss (B,) whose gradient in x is w (eps_pos - eps_neg).

    Args:
        pos, neg: two bindings of one model (asked together, in one batch), or two models on one schedule.
        x, times, weight: as for `sds`.
    Raises:
        ValueError: the two live on different schedules.
    """
    if pos.schedule != neg.schedule:
        raise ValueError(f"one denoiser lives on {pos.schedule}, the other on {neg.schedule}: use .on(schedule)")
    noisy, t, _ = noised(pos, x, times or window())
    with torch.no_grad():
        yes, no = together([pos, neg], noisy, t)
    return push(x, weighed(pos, weight, t, yes.eps - no.eps))
