"""Handwritten digits, 8 x 8, in minutes on two cores: the main job of suffuse.

A class-conditional flow (velocity on the linear schedule) trained on 1,437 real digits, judged against 360 unseen.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import data, grids, losses, metrics, nets, pictures
from suffuse.denoise import Denoiser
from suffuse.random import noise
from suffuse.recipes.draw import draw, recipe_of, sample_many, stamp
from suffuse.recipes.report import Page
from suffuse.recipes.run import Run
from suffuse.samplers import plan_for, run
from suffuse.schedules import Linear
from suffuse.training import Fit, alone, fit, save
from suffuse.training.files import write_json

__all__ = ["build", "classifier", "evaluate", "pictures_of", "train"]

SHAPE = (1, 8, 8)
STEPS, BATCH, LR, EMA, DROPOUT = 1080, 64, 2e-3, 0.995, 0.1
EVALUATIONS, WALK = 12, 24


EXPLAINED = {
    "label_accuracy": (
        "Label accuracy",
        "1 is best. A classifier trained on real digits only reads each sample; this is "
        "how often it reads the label that was asked for.",
    ),
    "frechet_ratio": (
        "Frechet ratio",
        "1 is as good as real data. Distance from the samples to unseen digits, in the "
        "classifier's features, over the distance from the real training digits to the same.",
    ),
    "precision": ("Precision", "Share of samples that look like real digits: within the region that these cover."),
    "recall": ("Recall", "Share of real digits within the region that the samples cover: low means little variety."),
    "memorised": (
        "Memorised",
        "Share of samples closer to a training digit than 99 % of unseen real digits are. "
        "A model that draws new digits stays near 0.01; one that copies goes to 1.",
    ),
    "judge_accuracy": (
        "The judge itself",
        "How often the classifier reads unseen real digits right: no label accuracy means more than this.",
    ),
}


def build(*, null: bool = True) -> Denoiser:
    """The untrained model: a small U-Net that predicts the velocity and may be told a digit's label."""
    net = nets.UNet(
        1, width=48, multipliers=(1, 2), blocks=1, attention=(1,), conditions={"label": nets.Label(10, optional=null)}
    )
    return Denoiser(net, Linear(), predicts="velocity")


def train(
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = STEPS,
    batch_size: int = BATCH,
    lr: float = LR,
    ema: float = EMA,
    dropout: float = DROPOUT,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train on the 1,437 digits of the training split and write a run folder.

    Args:
        out: the folder. seed: of weights, order and noise. steps, batch_size, lr, ema: as for `fit`.
        dropout: how often a label is withheld; 0 makes a model without a null, which cannot be guided.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    """
    out = Path(out)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build(null=dropout > 0)
    loss = partial(losses.denoising, times=losses.logit_normal, dropout=dropout)
    done: Fit = fit(
        loss,
        data.digits("train"),
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"dropout": dropout, "recipe": "digits"},
        log_every=20,
        progress=progress,
    )
    save(done.ema, out / "model")
    settings = {"seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema, "dropout": dropout}
    made = Run(out, "digits", SHAPE, settings, round(done.seconds, 2))
    made.write()
    return made


def classifier(*, seed: int = 0) -> metrics.Classifier:
    """The judge: a small classifier trained on the real training split and used for nothing but measuring."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        judge = metrics.Classifier(1, 8, 10)
    fit(
        metrics.classifier_loss,
        data.digits("train"),
        judge,
        steps=300,
        batch_size=128,
        lr=2e-3,
        weight_decay=0.01,
        ema=None,
        seed=seed,
        precision="float32",
        progress=False,
    )
    return judge.eval()


def evaluate(made: Run, *, seed: int = 1) -> dict[str, Any]:
    """Measure a run: as many samples as there are real training digits, with the same labels; writes metrics.json.

    Several processes share the sampling; then the first goes on alone.

    Returns:
        label_accuracy, frechet_ratio, precision, recall, memorised (each with value, n, interval, how), and
        judge_accuracy, train_seconds, samples_per_second, nfe.
    """
    model, real, unseen = made.model(), data.digits("train"), data.digits("test")
    n = len(real["x"])
    plan = plan_for(model.schedule, nfe=EVALUATIONS, size=math.prod(SHAPE))
    began = time.monotonic()
    x = sample_many(model.given(label=real["label"]), n, SHAPE, seed, sampler=plan).clamp(-1, 1)
    seconds = time.monotonic() - began
    alone()
    judge = classifier()
    (read, mine), (_, theirs), (told, held_out) = judge.read(x), judge.read(real["x"]), judge.read(unseen["x"])
    space = f"{judge.features} features of a classifier of real digits"
    hits, right = int((read == real["label"]).sum()), int((told == unseen["label"]).sum())
    measured = {
        "label_accuracy": metrics.proportion(hits, n, "share of samples that the judge reads as the label asked for"),
        "frechet_ratio": metrics.frechet_ratio(mine, theirs, held_out, features=space),
        "precision": metrics.precision(mine, theirs, features=space),
        "recall": metrics.recall(mine, theirs, features=space),
        "memorised": metrics.memorised(x, real["x"], unseen["x"]),
        "judge_accuracy": metrics.proportion(
            right, len(told), "share of unseen real digits that the judge reads right"
        ),
    }
    result: dict[str, Any] = {name: value.to_json() for name, value in measured.items()}
    result |= {
        "train_seconds": made.train_seconds,
        "samples_per_second": round(n / seconds, 1),
        "nfe": plan.nfe,
        "sampler": plan.name,
        "seed": seed,
        "model_hash": made.model_hash,
    }
    write_json(made.path / "metrics.json", result)
    return result


def pictures_of(made: Run, result: dict[str, Any], *, seed: int = 0) -> Path:
    """Write samples.png, denoising.png, denoising.gif, loss.png and report.html; returns the report's path."""
    model, out = made.model(), made.path
    labels = [digit for digit in range(10) for _ in range(10)]
    draw(recipe_of(out, label=labels, n=100, steps=EVALUATIONS, seed=seed), out / "samples.png")
    states, beliefs = _walk(model.given(label=torch.arange(10)), noise((10, *SHAPE), seed=seed + 1))
    about = stamp(made) | {
        "made by": "suffuse evaluate",
        "seed": seed + 1,
        "steps": WALK,
        "grid": "uniform",
        "shown": "states above, predicted x0 below",
    }
    times = [round(k * (len(states) - 1) / 9) for k in range(10)]
    strip = torch.stack([part[k] for part in (states, beliefs) for k in times])[:, [3, 5, 8]]  # two rows for each
    strip = strip.reshape(2, 10, 3, *SHAPE).permute(2, 0, 1, 3, 4, 5).reshape(-1, *SHAPE)
    pictures.save_png(pictures.grid(strip, 10, scale=6), out / "denoising.png", about | {"label": [3, 5, 8]})
    frames = [pictures.grid(torch.cat([a, b]), 10, scale=6) for a, b in zip(states, beliefs, strict=True)]
    pictures.animation(frames, out / "denoising.gif", about | {"label": list(range(10))})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    pictures.loss_curve(
        lines, out / "loss.png", stamp(made) | {"made by": "suffuse evaluate", "settings": made.settings}
    )
    return _page(made, result)


def _page(made: Run, result: dict[str, Any]) -> Path:
    out, settings = made.path, ", ".join(f"{k} {v}" for k, v in made.settings.items())
    page = Page(
        "digits: a diffusion model, trained here",
        f"Trained in {made.train_seconds:.0f} s ({settings}). Each sample takes {result['nfe']} network evaluations of "
        f"{result['sampler']}; {result['samples_per_second']:.0f} samples a second.",
    )
    page.section("Samples", "One row for each label, 0 to 9; none of these was drawn by a person.")
    page.picture(out / "samples.png", "ten generated digits of each class")
    page.section(
        "From noise to digit",
        "Above, the state as noise (left) becomes data (right); below, what the model believes the clean digit is at "
        "that moment. Labels 3, 5, 8.",
    )
    page.picture(out / "denoising.png", "states and predictions along the way")
    page.picture(out / "denoising.gif", "the same as an animation, all ten labels")
    page.section("What was measured")
    page.measurements((title, result[name], text) for name, (title, text) in EXPLAINED.items())
    page.section("Training")
    page.picture(out / "loss.png", "loss against samples seen", plot=True)
    page.note(f"model {result['model_hash']}, evaluated with seed {result['seed']}")
    return page.write(out / "report.html")


def _walk(model: Denoiser, start: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """States scaled to unit spread, and what the model believed, at every step of a fine run."""
    states, beliefs = [start], []
    for step in run(model, start, steps=WALK, grid=grids.uniform):
        alpha, sigma = model.schedule(step.s)
        states.append(step.x / max((alpha**2 + sigma**2) ** 0.5, 0.7))
        beliefs.append(step.prediction.x0)
    return states, [beliefs[0], *beliefs]
