"""Rectified flow: retrain a flow on its own ends, round after round, until its paths are straight.

    Z1 learns x_t = (1 - t) x + t eps with independent ends,   Z(k+1) with ends (x, eps) that Zk's flow connects;
    each round transports no further and bends less, and a straight flow needs one step.

Training is `losses.denoising`, which takes the ends that a batch brings ("x" and "eps"). What one step of a nearly
straight flow still misses, `one_step` distils at t = 1 alone.

Liu et al. 2022, algorithm 1 (reflow and distillation), section 2.2 (transport cost, straightness).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse import grids
from suffuse.denoise import Denoiser, call
from suffuse.losses.denoising import denoising
from suffuse.losses.fewstep.straight import slope
from suffuse.samplers import ddim, sample
from suffuse.schedules import Linear

__all__ = ["one_step", "pairs", "straightness", "transport_cost"]


def pairs(flow: Any, noise: Tensor, **how: Any) -> dict[str, Tensor]:
    """The two ends of the flow's paths, what the next round is trained on.

    Args:
        flow: on `schedules.Linear()`, told its conditions. noise: (B, ...) standard normal.
        how: options of `sample`; by default 50 steps of Euler.
    Returns:
        {"x": data (B, ...), "eps": the noise it was made of}; conditions are the caller's to add.
    Raises:
        ValueError: the model is no flow on the straight line.
    """
    _flow(flow)
    how = how or {"sampler": ddim(), "steps": 50, "grid": grids.uniform}
    return {"x": sample(flow, noise, **how), "eps": noise}


def one_step(flow: Denoiser, batch: Mapping[str, Tensor]) -> Tensor:
    """|x - x0(eps, t = 1)|^2 by row: distil pairs into one step.

    Args:
        flow: what is trained. batch: "x" and "eps" from `pairs`; all other entries are conditions.
    Returns:
        (B,).
    Raises:
        ValueError: a batch without "eps"; the model is no flow on the straight line.
    """
    _flow(flow)
    if "eps" not in batch:
        raise ValueError('one-step distillation learns pairs: the batch needs "eps" beside "x", see fewstep.pairs')
    return denoising(flow, batch, times=lambda n, device: torch.ones(n, device=device))


def straightness(flow: Any, noise: Tensor, *, steps: int = 50) -> Tensor:
    """Integral over t of |(eps - x) - u(x_t, t)|^2 along each path, (B,): 0 for straight paths.

    A sum over coordinates, by Euler at `steps` points.

    Args:
        flow: on `schedules.Linear()`. noise: (B, ...).
    Liu et al. 2022, section 2.2.
    """
    _flow(flow)
    slopes, x = [], noise
    with torch.no_grad():
        for k in range(steps, 0, -1):
            u = slope(call(flow, x, k / steps))
            slopes.append(u)
            x = x - u / steps
    whole = noise - x
    return torch.stack([(whole - u).flatten(1).square().sum(1) for u in slopes]).mean(0)


def transport_cost(pair: Mapping[str, Tensor]) -> Tensor:
    """|x - eps|^2 of each pair, (B,): what no round of reflow raises on average."""
    return (pair["x"] - pair["eps"]).flatten(1).square().sum(1)


def _flow(flow: Any) -> None:
    if flow.schedule != Linear():
        raise ValueError(
            f"reflow straightens a flow on the line x_t = (1 - t) x + t eps, this model lives on {flow.schedule}: use "
            "model.on(sf.schedules.Linear())"
        )
