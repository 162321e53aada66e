"""Work-precision: how close each sampler comes to the exact flow for how many network evaluations."""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from suffuse import grids, oracle, pictures, samplers
from suffuse.random import noise
from suffuse.samplers.rule import Rule
from suffuse.schedules import Linear, Schedule
from suffuse.training.progress import Progress

__all__ = ["plot", "work_precision"]

NFE = (4, 6, 8, 10, 12, 16, 20, 28, 40, 60)
GRIDS = (grids.logsnr, partial(grids.flow, shift=1.1, power=1.5))


def world(schedule: Schedule) -> oracle.Mixture:
    """Nine Gaussians in the plane, unit variance in all, neither apart nor one."""
    means = noise((9, 2), seed=0, dtype=torch.float64)
    means = (means - means.mean(0)) / means.std(0, correction=0)
    return oracle.Mixture(torch.ones(9), 0.95 * means, 0.1, schedule=schedule)


def work_precision(
    rules: dict[str, Rule | None], schedule: Schedule, *, n: int = 1024, progress: bool = False
) -> dict[str, dict[int, float]]:
    """RMSE to the flow of a mixture that is known, by sampler and evaluations.

    Args:
        rules: by name, each on the better of `GRIDS`; None is the default of each budget.
        n: samples. progress: whether to show it.
    """
    model, start = world(schedule), noise((n, 2), seed=1, dtype=torch.float64)
    exact = samplers.sample(model, start, nfe=600)
    found: dict[str, dict[int, float]] = {name: {} for name in rules}
    with Progress("samplers", len(rules), show=progress) as bar:
        for k, (name, rule) in enumerate(rules.items()):
            bar.update(k, name)
            for nfe, grid in product(NFE, (None,) if rule is None else GRIDS):
                try:
                    plan = samplers.plan_for(schedule, sampler=rule, nfe=nfe, grid=grid)
                except ValueError:
                    continue  # its first step costs more
                error = (samplers.sample(model, start, sampler=plan) - exact).square().mean().sqrt().item()
                found[name][plan.nfe] = min(error, found[name].get(plan.nfe, math.inf))
    return {name: curve for name, curve in found.items() if curve}


def plot(path: Path, schedule: Schedule | None = None) -> dict[str, dict[int, float]]:
    """Draw the diagram of every deterministic sampler and of the default; return its numbers."""
    from matplotlib.figure import Figure

    schedule = schedule or Linear()
    rules: dict[str, Any] = {n: r for n, r in samplers.rules().items() if not r.stochastic and n not in _OTHER}
    found = work_precision({"default": None} | rules, schedule, progress=True)
    figure = Figure(figsize=(8, 5.5), layout="tight")
    axis = figure.subplots()
    shown = sorted(found, key=lambda name: min(found[name].values()))
    for k, name in enumerate(shown):
        style: dict[str, Any] = {"color": "black", "linewidth": 2.2} if name == "default" else {"color": f"C{k % 10}"}
        line = ("-", "--", ":")[k // 10] if name != "default" else "-"
        axis.plot(list(found[name]), list(found[name].values()), line, marker=".", label=name, **style)
    axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="RMSE to the exact flow", ylim=(None, 3))
    axis.set_xticks(NFE, [str(n) for n in NFE])
    axis.minorticks_off()
    axis.set_title(f"nine Gaussians in the plane, {schedule}")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    pictures.save_figure(figure, path, {"made by": "suffuse samplers --plot", "schedule": str(schedule)}, dpi=100)
    return found


_OTHER = ("cfgpp", "edict")  # they follow another curve, or need a partner
