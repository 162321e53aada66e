"""Progressive distillation: one step of the student is two of the teacher; then the student becomes the teacher.

    student: t -> s in one DDIM step,   teacher: t -> m -> s,  m half way;   steps N, N/2, ..., 1

The target is the one slope that leads from x_t to where the teacher's two steps lead, in the coordinates
y = x/(alpha + sigma), where DDIM is Euler: the same target as the paper's x0, and finite at both ends.

Salimans & Ho 2022, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.denoising import corrupt
from suffuse.losses.fewstep.straight import believed, jump, mean_slope, slope, squares

__all__ = ["progressive"]


def progressive(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    teacher: Any,
    steps: int,
    w: float = 1.0,
    dropout: float = 0.0,
    coupling: Coupling = independent,
) -> Tensor:
    """|u - slope of the teacher's two half steps|^2, by row.

    Args:
        model: what is trained, to be run by `ddim` with `steps` steps on `grids.uniform`.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        teacher: the model of the round before, good at 2 `steps` steps. steps: of the student.
        w: guidance of the teacher that the student takes over, 1 is off; in the first round only.
        dropout, coupling: as for `denoising`.
    Returns:
        (B,).
    Raises:
        ValueError: steps < 1; the teacher lives on another schedule, or is guided already and w is not 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")

    def on_grid(n: int, device: torch.device) -> Tensor:
        return (1 + torch.arange(n, device=device) % steps)[torch.randperm(n, device=device)] / steps

    model, _, _, x, t = corrupt(model, batch, on_grid, dropout, coupling)
    middle, end = t - 0.5 / steps, (t - 1 / steps).clamp(min=0)
    with torch.no_grad():
        half = jump(believed(teacher, model, x, t, to=middle, w=w), model.schedule, middle)
        there = jump(believed(teacher, model, half, middle, to=end, w=w), model.schedule, end)
        target = mean_slope(model.schedule, x, t, there, end)
    return squares(slope(model(x, t, to=end)) - target)
