"""Score distillation sampling: move an image to where a model finds it likely at every noise level.

    g = w(logsnr) (eps_hat(x_t) - eps)

On average g is a multiple of -grad log p_t(alpha x + ...): it climbs to a mode, and many starts end at one image. For
that reason it wants strong guidance (25 and more).

Poole et al. 2023 (DreamFusion), eq. 3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.losses import weights
from suffuse.losses.distillation.push import eps_of, noised, push, weighed, window
from suffuse.losses.times import Times
from suffuse.losses.weights import Weight

__all__ = ["sds"]


def sds(model: Any, x: Tensor, *, times: Times | None = None, weight: Weight = weights.x0) -> Tensor:
    """A loss (B,) whose gradient in x is w (eps_hat - eps).

    Args:
        model: a denoiser, guided if wanted; not trained. x: images or latents (B, ...), with a graph.
        times: of `window` or `annealed`; by default `window(0.02, 0.98)`. weight: of `losses.weights`, on eps.
    """
    noisy, t, eps = noised(model, x, times or window())
    return push(x, weighed(model, weight, t, eps_of(model, noisy, t) - eps))
