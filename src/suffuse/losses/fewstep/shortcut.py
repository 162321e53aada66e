"""Shortcut models: a step of any power-of-two length, each learned as two steps of half of it.

    u(x, t, t - 2d) = mean slope of  x_t -> x_(t-d) -> x_(t-2d)  by the network itself,    d = 1/N, 2/N, ..., 1/2
    u(x, t, t) = flow matching,    which the shortest halves, d = 1/N, are taken with

Frans et al. 2024, algorithm 1 (N = 128, a quarter of the rows for self-consistency).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.couplings import Coupling, independent
from suffuse.losses.denoising import corrupt
from suffuse.losses.fewstep.straight import believed, jump, mean_slope, slope, squares, two_time
from suffuse.losses.times import Times, stratified

__all__ = ["shortcut"]


def shortcut(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    *,
    teacher: Any = None,
    w: float = 1.0,
    levels: int = 7,
    share: float = 0.25,
    times: Times = stratified,
    dropout: float = 0.0,
    coupling: Coupling = independent,
) -> Tensor:
    """Flow matching, and for a share of the rows agreement of one step with its two halves; by row.

    Args:
        model: what is trained: a two-time network, to be run by `ddim` with 2^k steps on `grids.uniform`.
        batch: "x" is clean data (B, ...); every other entry is a condition by name.
        teacher: whose slope the rest of the rows match; None is that of data and noise. Halves are the network's own
            in either case. w: the teacher's guidance, 1 is off.
        levels: the shortest half is 2^-levels. share: of the rows that learn steps.
        times: of the rest. dropout, coupling: as for `denoising`.
    Returns:
        (B,).
    Raises:
        ValueError: the network is not told `to`; share out of [0, 1], levels < 1; the teacher's schedule.
    """
    two_time(model, "shortcut")
    if not 0 <= share <= 1 or levels < 1:
        raise ValueError(f"share must be in [0, 1] and levels at least 1, got {share:g} and {levels}")
    n, device = len(batch["x"]), batch["x"].device
    far = round(share * n)
    half = 2.0 ** -torch.randint(1, levels + 1, (far,), device=device)
    start = 2 * half * (1 + (torch.rand(far, device=device) / (2 * half)).floor())
    t = torch.cat([start, times(n - far, device)]) if far < n else start
    model, x0, eps, x, _ = corrupt(model, batch, lambda n, device: t, dropout, coupling)
    to = torch.cat([start - 2 * half, t[far:]])
    with torch.no_grad():
        if teacher is not None and far < n:
            p = believed(teacher, model.rows(slice(far, n)), x[far:], t[far:], to=t[far:], w=w)
            target = slope(p)
        else:
            target = (eps - x0)[far:]
        if far:
            part, shortest = model.rows(slice(0, far)), half == 2.0**-levels
            y, at = x[:far], start
            for _ in range(2):
                aim = at - half
                p = part(y, at, to=torch.where(shortest, at, aim))
                y, at = jump(p, model.schedule, aim), aim
            target = torch.cat([mean_slope(model.schedule, x[:far], start, y, at), target])
    return squares(slope(model(x, t, to=to)) - target)
