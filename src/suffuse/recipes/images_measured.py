"""What a model of your own pictures has learned: samples against the pictures kept out, with numbers and a page."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse import metrics, pictures
from suffuse.data import Pictures
from suffuse.recipes.draw import sample_many, stamp
from suffuse.recipes.images import again
from suffuse.recipes.report import Page
from suffuse.recipes.run import Run
from suffuse.samplers import plan_for
from suffuse.training import alone
from suffuse.training.files import write_json

__all__ = ["evaluate", "pictures_of"]

EVALUATIONS, ASKED, SHOWN = 20, 1024, 64


def evaluate(made: Run, *, n: int = ASKED, seed: int = 1, features: metrics.Features | None = None) -> dict[str, Any]:
    """Measure a run against the pictures it was trained on and those kept out; writes metrics.json.

    Several processes share the sampling; then the first goes on alone.
    As many samples as pictures kept out or n, whichever is less, with the captions or classes of these. Without
    features no network reads them: the space is the pixels at 8 x 8, which sees colour and layout, and no detail.

    Args:
        made: the run. n: see above. seed: of the noise. features: a network's, see `metrics.features`.
    Returns:
        "measured": sliced_w and floor_w (samples, and real training pictures, against those kept out), coverage,
        memorised; with features kid and floor_kid, and where 2 D + 2 pictures are there frechet and floor_frechet;
        {} where fewer than 8 pictures are kept out. pictures_per_second, nfe, sampler, seed, findings.
    """
    model, (found, mine, kept_out) = made.model(), again(made)
    plan = plan_for(model.schedule, nfe=EVALUATIONS, size=math.prod(made.shape))
    result: dict[str, Any] = {"measured": {}, "nfe": plan.nfe, "sampler": plan.name, "seed": seed}
    n = min(n, len(kept_out))
    if n >= 8:
        train, unseen = (
            found[mine[_spread(len(mine), min(len(mine), 20 * n))]],
            found[kept_out[_spread(len(kept_out), n)]],
        )
        real = unseen.pop("x")
        began = time.monotonic()
        x = sample_many(model.given(**unseen), n, made.shape, seed, sampler=plan).clamp(-1, 1)
        result["pictures_per_second"] = round(n / (time.monotonic() - began), 2)
        space, (a, b, c) = "pixels at 8 x 8", (_small(part) for part in (x, train["x"], real))
        rows = _spread(len(b), n)
        measured = {
            "sliced_w": metrics.sliced_wasserstein(a, c, features=space),
            "floor_w": metrics.sliced_wasserstein(b[rows], c, features=space),
            "coverage": metrics.coverage(a, c, k=min(5, n - 1), features=space),
            "memorised": metrics.memorised(x, train["x"], real),
        }
        if features is not None:
            measured |= _in(features, x, train["x"][rows], real)
        result["measured"] = {name: value.to_json() for name, value in measured.items()}
    alone()
    result |= {"findings": found.findings.to_json(), "model_hash": made.model_hash}
    write_json(made.path / "metrics.json", result)
    return result


def _in(features: metrics.Features, x: Tensor, train: Tensor, real: Tensor) -> dict[str, metrics.Measured]:
    a, b, c = features(x), features(train), features(real)
    found = {f"{floor}kid": metrics.kid(y, c, features=features.name) for floor, y in (("", a), ("floor_", b))}
    if len(c) >= 2 * c.shape[1] + 2:
        found["frechet"] = metrics.frechet(a, c, features=features.name)
        found["floor_frechet"] = metrics.frechet(b, c, features=features.name)
    return found


EXPLAINED = {
    "sliced_w": "Sliced Wasserstein distance from samples to pictures kept out, in colour and layout; less is better.",
    "floor_w": "The same from as many training pictures: no model is expected below it.",
    "coverage": "Share of pictures kept out that have a sample near them; 0.97 for real pictures.",
    "memorised": "Share of samples nearer to a training picture than 99 % of the pictures kept out are. A model that "
    "draws new pictures stays near 0.01; one that copies goes to 1.",
    "kid": "Kernel distance in the features asked for, unbiased at any number of pictures; 0 is best.",
    "floor_kid": "The same from as many training pictures: about 0.",
    "frechet": "Frechet distance in the features asked for. It falls with the number of pictures: compare equal ones.",
    "floor_frechet": "The same from as many training pictures: no model is expected below it.",
}


def _spread(n: int, k: int) -> Tensor:
    """k of n rows, evenly."""
    return torch.arange(k) * n // max(k, 1)


def _small(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 8).flatten(1)


def pictures_of(made: Run, result: dict[str, Any], *, seed: int = 0) -> Path:
    """Write samples.png, data.png, nearest.png, loss.png and report.html; returns the report's path."""
    model, (found, mine, _), out = made.model(), again(made), made.path
    n, scale = min(SHOWN, len(mine)), max(1, 96 // made.shape[-1])
    rows = mine[_spread(len(mine), n)]
    batch = found[rows]
    real, about = batch.pop("x"), stamp(made) | {"made by": "suffuse evaluate", "seed": seed, "nfe": EVALUATIONS}
    x = sample_many(model.given(**batch), n, made.shape, seed, nfe=EVALUATIONS).clamp(-1, 1)
    columns = max(1, round(n**0.5))
    for name, part_of in (("samples", x), ("data", real)):
        pictures.save_png(pictures.grid(part_of, columns, scale=scale), out / f"{name}.png", about)
    near = torch.stack([_nearest(found, mine, one) for one in x[:8]])
    pictures.save_png(pictures.grid(torch.cat([x[:8], near]), len(near), scale=scale), out / "nearest.png", about)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    pictures.loss_curve(lines, out / "loss.png", about | {"settings": made.settings})
    looks = [line for line in lines if "val_loss" in line]
    if looks:
        pictures.curves(looks, ("val_loss",), out / "kept_out.png", about, "loss of pictures kept out")
    return _page(made, result, found, rows.tolist(), bool(looks))


def _nearest(found: Pictures, mine: Tensor, one: Tensor) -> Tensor:
    best, nearest = math.inf, one
    for rows in mine.split(1024):
        x = found[rows]["x"]
        d = (x - one).square().flatten(1).sum(1)
        if (k := int(d.argmin())) >= 0 and d[k] < best:
            best, nearest = d[k].item(), x[k]
    return nearest


def _page(made: Run, result: dict[str, Any], found: Pictures, rows: list[int], looked: bool) -> Path:
    out, settings = made.path, ", ".join(f"{k} {v}" for k, v in made.settings.items())
    page = Page(
        f"{Path(made.settings['data']).name}: a model of your pictures",
        f"Trained in {made.train_seconds / 60:.0f} minutes ({settings}). Each picture takes {result['nfe']} network "
        f"evaluations of {result['sampler']}.",
    )
    page.section("Samples")
    page.picture(out / "samples.png", "samples")
    page.section("Data", "Real pictures of the training set; of the same captions or classes, place by place.")
    page.picture(out / "data.png", "real pictures")
    page.section("Nearest", "Above, samples; below, the training picture nearest to each, pixel by pixel.")
    page.picture(out / "nearest.png", "samples and the training pictures nearest to them")
    if "text" in made.model().conditions:
        page.section("Captions", "Of the first pictures, row by row.")
        page.table(["picture", "caption"], [(str(i + 1), found.captions[row]) for i, row in enumerate(rows[:16])])
    page.section("What was measured", "" if result["measured"] else "Too few pictures are kept out to measure.")
    page.measurements((name, m, EXPLAINED[name]) for name, m in result["measured"].items())
    page.section("The files", f"{found.findings.kept:,} pictures were taken in.")
    for title, odd in (("left out", found.findings.left_out), ("taken in", found.findings.odd)):
        if odd:
            page.table(
                [title, "files", "names"],
                ((why, f"{len(names):,}", ", ".join(names[:40])) for why, names in odd.items()),
            )
    page.section("Training")
    page.picture(out / "loss.png", "loss against samples seen", plot=True)
    if looked:
        page.picture(out / "kept_out.png", "loss of pictures kept out against samples seen", plot=True)
    page.note(f"model {result['model_hash']}, evaluated with seed {result['seed']}")
    return page.write(out / "report.html")
