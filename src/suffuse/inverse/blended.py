"""Blended diffusion: generative fill in which every state keeps what is known, at its noise level.

x_b <- m (alpha_b y + sigma_b z) + (1 - m) x_b

with any model, such as one guided by text. Known pixels are y to the last bit. It may begin at a noised picture
(t < 1), whose colours and layout in the hole then show through: a local edit.

Approximated: the known part of a state is drawn without regard to the rest, so the two need not agree and seams show.
`repaint` is the same with steps walked again, which mends that at a cost.

Avrahami et al. 2022 (Blended diffusion), algorithm 2, with guidance in the place of its CLIP gradient.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse import grids
from suffuse.inverse.repaint import filled
from suffuse.operators import Mask
from suffuse.samplers import Rule, ddpm

__all__ = ["blended"]


def blended(
    model: Any,
    A: Mask,
    y: Tensor,
    noise: Tensor,
    *,
    steps: int,
    start: tuple[Tensor, float] | None = None,
    seed: int,
    first: int = 0,
    sampler: Rule = ddpm,
) -> Tensor:
    """Samples that agree with y where the mask is true.

    Args:
        model: a denoiser; what it is told, it shows in the hole. A: a `Mask`. y: (1 or B, ...) without noise.
        noise: (B, ...). steps: of the grid, one evaluation each.
        start: (x0, t): begin at x0 (B, ...) noised to time t instead of at pure noise.
        seed, first: as for `sf.sample`. sampler: any rule.
    Returns:
        (B, ...).
    Raises:
        TypeError: A is not a Mask. ValueError: y has a NaN, or does not fit.
    """
    grid = grids.flow(model.schedule, steps, start=1.0 if start is None else start[1])
    return filled("blended", model, A, y, noise, grid, sampler, start=start, seed=seed, first=first)
