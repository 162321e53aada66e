"""Points in the plane: any toy of `suffuse.data`, learned in a minute and measured against its own noise floor.

A flow (velocity on the linear schedule). Moved to the betas of DDPM by `.on(...)`, which is exact, the same weights
answer for DDPM, DDIM and DPM-Solver: one training, every sampler.
"""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import grids, losses, metrics, nets, pictures, samplers
from suffuse.data import toys
from suffuse.denoise import Denoiser
from suffuse.random import noise
from suffuse.recipes.draw import stamp
from suffuse.recipes.report import Page
from suffuse.recipes.run import Run
from suffuse.schedules import Discrete, Linear
from suffuse.training import Fit, alone, fit, gathered, save
from suffuse.training.files import write_json

__all__ = ["SAMPLERS", "build", "evaluate", "known", "pictures_of", "points", "train"]

SHAPE = (2,)
STEPS, BATCH, LR, EMA, OPTIMIZER = 5000, 128, 2e-3, 0.999, "muon"
"""Steps and batch are the course's, which sees each of its points once."""
ASKED = 2048
FRESH = 2**40
"""Seeds from here on are of points and noise that no training saw."""
SAMPLERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddpm": ("DDPM, 1000 steps", "ddpm", {"sampler": samplers.ddpm(), "steps": 1000, "grid": grids.uniform}),
    "ddim": ("DDIM, 50 steps", "ddpm", {"sampler": samplers.ddim(), "steps": 50, "grid": grids.uniform}),
    "dpm_solver": (
        "DPM-Solver-2, 50 evaluations",
        "ddpm",
        {"sampler": samplers.dpm_solver(order=2), "nfe": 50, "grid": grids.logsnr},
    ),
    "flow": (
        "Euler along the flow, 50 steps",
        "flow",
        {"sampler": samplers.ddim(), "steps": 50, "grid": grids.uniform},
    ),
    "default": ("What `sample` takes by itself, 20 evaluations", "flow", {"nfe": 20}),
}
"""What `evaluate` compares: in words, on which schedule ("ddpm" is 1,000 betas), options of `sample`."""
MEANING = {
    "chamfer": "Chamfer distance, squared and summed as in the course: 0 is best, and blind to density.",
    "energy": "Energy distance: 0 for equal distributions only.",
    "w2": "Exact 2-Wasserstein distance, in the units of the data.",
}


def known() -> dict[str, Any]:
    """The toys by the name that the command line gives them: "swiss-roll", "moons", ..."""
    made = {name: getattr(toys, name) for name in toys.__all__}
    return {
        n.replace("_", "-"): f for n, f in made.items() if list(inspect.signature(f).parameters)[:2] == ["n", "seed"]
    }


def points(data: str, n: int, seed: int) -> Tensor:
    """n points (n, 2) of a toy.

    Raises:
        ValueError: no toy of that name.
    """
    if data not in known():
        raise ValueError(f"unknown toy {data!r}: one of {', '.join(known())}")
    return known()[data](n, seed)["x"]


def build() -> Denoiser:
    """The untrained model: 182,402 parameters, the course's network has 182,410."""
    return Denoiser(nets.MLP(2, width=128, depth=2), Linear(), predicts="velocity")


def train(
    out: str | Path,
    *,
    data: str = "swiss-roll",
    seed: int = 0,
    steps: int = STEPS,
    batch_size: int = BATCH,
    lr: float = LR,
    ema: float | None = EMA,
    optimizer: str = OPTIMIZER,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train on as many points as the run takes, each seen once, and write a run folder.

    Args:
        out: the folder. data: a toy, see `known`. seed: of points, weights and noise.
        steps, batch_size, lr, ema, optimizer: as for `fit`.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    Raises:
        ValueError: no toy of that name.
    """
    out, x = Path(out), points(data, steps * batch_size, seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build()
    done: Fit = fit(
        losses.denoising,
        {"x": x},
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        optimizer=optimizer,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        precision="float32",  # half of it would blur the curve, and saves nothing at this size
        settings={"recipe": "toy", "data": data},
        progress=progress,
    )
    save(done.ema, out / "model")
    settings = {"data": data, "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema}
    settings["optimizer"] = optimizer
    made = Run(out, "toy", SHAPE, settings, round(done.seconds, 2))
    made.write()
    return made


def evaluate(made: Run, *, n: int = ASKED, seed: int = 1) -> dict[str, Any]:
    """Measure every sampler of `SAMPLERS` against n points that training did not see; writes metrics.json.

    Several processes share the sampling; then the first goes on alone.

    Returns:
        For each sampler, and for "floor" (other real points) and "chance" (a Gaussian of their mean and covariance):
        "asked", what it is, and "measured": chamfer, energy and w2.
    """
    model, data = made.model(), made.settings["data"]
    real = points(data, n, FRESH + 2 * seed)
    result: dict[str, Any] = {"n": n, "seed": seed, "data": data, "model_hash": made.model_hash}
    drawn = {}
    for name, (title, _, _) in SAMPLERS.items():
        began = time.monotonic()
        drawn[name] = samples(model, name, n, seed)
        result[name] = {"asked": title, "seconds": round(time.monotonic() - began, 2)}
    alone()
    for name, x in drawn.items():
        result[name]["measured"] = _measured(x, real)
    floor = points(data, n, FRESH + 2 * seed + 1)
    result["floor"] = {"asked": "Floor: other real points", "measured": _measured(floor, real)}
    blob = real.mean(0) + noise((n, 2), FRESH + seed) @ torch.linalg.cholesky(real.T.cov()).T
    result["chance"] = {
        "asked": "Chance: a Gaussian of the same mean and covariance",
        "measured": _measured(blob, real),
    }
    write_json(made.path / "metrics.json", result)
    return result


def samples(model: Denoiser, name: str, n: int, seed: int) -> Tensor:
    """n points of one of `SAMPLERS`."""
    _, schedule, how = SAMPLERS[name]
    denoiser = model.on(Discrete.ddpm()) if schedule == "ddpm" else model

    def some(i: int, k: int) -> Tensor:
        return samplers.sample(denoiser, noise((k, *SHAPE), FRESH + seed, first=i), seed=seed, first=i, **how)

    return gathered(n, some)


def _measured(x: Tensor, real: Tensor) -> dict[str, Any]:
    space = "the points themselves"
    found = {
        "chamfer": metrics.chamfer(x, real, reduce="sum"),
        "energy": metrics.energy_distance(x, real, features=space),
        "w2": metrics.wasserstein(x, real, features=space),
    }
    return {name: value.to_json() for name, value in found.items()}


def pictures_of(made: Run, result: dict[str, Any], *, seed: int = 1) -> Path:
    """Write samples.png, trajectory.png, loss.png and report.html; returns the report's path."""
    from matplotlib.figure import Figure

    model, out, data, n = made.model(), made.path, made.settings["data"], result["n"]
    real = points(data, n, FRESH + 2 * seed)
    reach = 1.15 * real.abs().max().item()
    about = stamp(made) | {"made by": "suffuse evaluate", "seed": seed}
    shown = ["ddpm", "ddim", "dpm_solver", "flow"]
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 4), shown, strict=True):
        x = samples(model, name, n, seed)
        pictures.scatter(axes, real, reach, colour="#c9c9c9", size=5)
        pictures.scatter(axes, x, reach)
        value = result[name]["measured"]["chamfer"]["value"]
        axes.set_title(f"{result[name]['asked']}\nChamfer {value:.1f}", fontsize=9)
    pictures.save_figure(figure, out / "samples.png", about)
    start = noise((n, *SHAPE), FRESH + seed)
    states = [(1.0, start)]
    states += [(step.s, step.x) for step in samplers.run(model, start, steps=50, grid=grids.uniform)]
    figure = Figure(figsize=(12, 2.7), layout="constrained")
    panels = list(figure.subplots(1, 6))
    for k, axes in enumerate(panels):
        t, x = states[k * 10]
        pictures.scatter(axes, x, reach, size=1)
        axes.set_title(f"t = {t:.1f}", fontsize=9)
    paths = torch.stack([x for _, x in states])[:, :40]
    panels[-1].plot(paths[..., 0], paths[..., 1], lw=0.5, color="#e07a3f")
    panels[-1].set_title("t = 0, and forty ways there", fontsize=9)
    pictures.save_figure(figure, out / "trajectory.png", about)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    pictures.loss_curve(lines, out / "loss.png", about | {"settings": made.settings})
    return _page(made, result)


def _page(made: Run, result: dict[str, Any]) -> Path:
    out, settings = made.path, ", ".join(f"{k} {v}" for k, v in made.settings.items())
    page = Page(
        f"{result['data']}: a flow of points in the plane",
        f"Trained in {made.train_seconds:.0f} s ({settings}); {result['n']:,} samples against as many points that "
        "training did not see.",
    )
    page.section("Samples", "Blue: samples. Grey: the points they are measured against.")
    page.picture(out / "samples.png", "samples over data, by sampler", plot=True)
    page.section("From noise to data", "Fifty steps of Euler along the flow; noise is t = 1, data t = 0.")
    page.picture(out / "trajectory.png", "states along the flow", plot=True)
    for name in (*SAMPLERS, "floor", "chance"):
        page.section(result[name]["asked"])
        page.measurements((key, m, MEANING[key]) for key, m in result[name]["measured"].items())
    page.section("Training")
    page.picture(out / "loss.png", "loss against samples seen", plot=True)
    page.note(f"model {result['model_hash']}, evaluated with seed {result['seed']}")
    return page.write(out / "report.html")
