"""Latent consistency models: a guided teacher is distilled, and the student is told the guidance as a number.

    w ~ U(low, high) each row;   teacher: neg + w (pos - neg), one step over k of N intervals;   student: f(x_t, t, w)

Guidance is folded in: the student's one evaluation stands for the teacher's two, and it must not be guided again.
Nothing of it needs latents: those are the data of a latent model.

Luo et al. 2023, algorithm 1 (their w is ours minus one); Meng et al. 2023 for the scale as an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.fewstep.consistency import consistency_distillation, intervals
from suffuse.losses.times import Times, stratified

__all__ = ["latent_consistency"]


def latent_consistency(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    teacher: Any,
    w: tuple[float, float] = (1.0, 4.0),
    steps: int = 50,
    skip: int = 2,
    order: int = 1,
    times: Times = stratified,
    huber: float | None = 0.00054,
    coupling: Coupling = independent,
) -> Tensor:
    """Consistency along the flow of a guided teacher, by row.

    Args:
        model: what is trained: takes a condition "w", `nets.Scalar()`, beside the teacher's.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        teacher: unguided, with a null for its conditions; on the student's schedule.
        w: range that the guidance is drawn from. steps, skip: N and k: a step of the teacher is k / N in tau.
        order, times, huber, coupling: as for `consistency_distillation`.
    Returns:
        (B,).
    Raises:
        ValueError: a student without a condition "w"; a teacher that is guided already; an empty range.
    """
    low, high = w
    if not low <= high:
        raise ValueError(f"w must be a range (low, high), got {w}")
    if "w" not in model.conditions:
        raise ValueError(
            f"{type(model.net).__name__} cannot be told the guidance that is folded into it: build it with "
            'conditions={..., "w": nets.Scalar()}'
        )
    x = batch["x"]
    scale = low + (high - low) * torch.rand(len(x), device=x.device)
    return consistency_distillation(
        model,
        {**batch, "w": scale},
        teacher=teacher,
        gap=intervals(steps / skip),
        order=order,
        w=scale,
        times=times,
        huber=huber,
        coupling=coupling,
    )
