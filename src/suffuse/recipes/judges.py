"""The two judges of the shapes world, trained on scenes of their own seeds, and on what is no scene.

A third of what they see is wrong on purpose, and has to be read as none: objects that are half one shape and half
another, blurred scenes, scenes in noise, and blobs. So a judge does not find shapes where a model drew none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import metrics
from suffuse.data.shapes import COLOURS, SHAPES, STYLES, Attributes, Batch, Scenes
from suffuse.metrics.judge_nets import IGNORE
from suffuse.training import Fit, fit
from suffuse.training.files import read_tensors, whole_folder, write_json, write_tensors

__all__ = ["broken", "filled", "for_zoo", "halved", "lesson", "study", "train_judge", "vary", "write_judge"]

J = TypeVar("J", bound=nn.Module)

SEEDS = {"use": 1_000_001, "held_out": 2_000_003}
STEPS = {"use": 800, "held_out": 1500}
LR = {"use": 3e-3, "held_out": 2e-3}
FRESH = 3_000_017
"""Seed of the scenes that a judge's own error is measured on."""


def lesson(seed: int, items: Tensor) -> tuple[Tensor, Attributes]:
    """Images (B, 3, 32, 32) and what is to be read in them; the items' numbers decide all but the corruption.

    Every combination and style, one to three objects; a sixth is broken. Uses torch's generator, which `fit` seeds.
    """
    three = (0.25, 0.5, 0.25)
    mixture = (
        (0.40, Scenes(seed, counts=three), False),
        (0.16, Scenes(seed, counts=three), True),
        (0.26, Scenes(seed, counts=three, held_out=True), False),
        (0.08, Scenes(seed, counts=three, dotted=True), False),
        (0.10, Scenes(seed, 64, counts=(0.1, 0.2, 0.7)), False),
    )
    images, targets = [], []
    sizes = [round(share * len(items)) for share, *_ in mixture[:-1]]
    for (_, scenes, breaks), part in zip(mixture, items.split([*sizes, len(items) - sum(sizes)]), strict=True):
        batch = scenes[part]
        picture, target = broken(batch) if breaks else (batch.images, batch.attributes)
        scale = scenes.size // 32
        images.append(F.avg_pool2d(picture, scale) if scale > 1 else picture)
        targets.append(replace(target, x=target.x / scale, y=target.y / scale, side=32))
    names = ("count", "shape", "colour", "size", "fill", "x", "y", "background", "style", "depth")
    target = Attributes(**{n: torch.cat([getattr(t, n) for t in targets]) for n in names}, side=32)
    return _spoil(vary(torch.cat(images)), target)


def broken(batch: Batch) -> tuple[Tensor, Attributes]:
    """The scenes with every object cut along random lines, and every other piece of another shape: none of either.

    An object that lies almost wholly in one piece says nothing about its shape.
    """
    a, n, side = batch.attributes, len(batch), batch.attributes.side
    shift = torch.randint(1, len(SHAPES), a.shape.shape)
    other = Batch(
        replace(a, shape=torch.where(a.present, (a.shape + shift) % len(SHAPES), -1)), batch.decor, side, _silent
    )
    angle = torch.rand(n, 1, 1) * torch.pi
    at = torch.arange(side) + 0.5
    period = side * (0.2 + 0.3 * torch.rand(n, 1, 1))
    wave = torch.sin((at * angle.cos() + at[:, None] * angle.sin()) * (torch.pi / period) + 7 * torch.rand(n, 1, 1))
    cut = (wave > 0).float()
    image = torch.where(cut[:, None] > 0, other.images, batch.images)
    area = batch.masks.sum((2, 3)).clamp(min=1e-3)
    share = (batch.masks * cut[:, None]).sum((2, 3)) / area
    both = (share > 0.3) & (share < 0.7)
    shape = torch.where(both, len(SHAPES), IGNORE)
    target = replace(a, shape=torch.where(a.present, shape, -1), fill=torch.where(a.present, IGNORE, -1))
    return image, target


def _silent(scenes: Attributes) -> list[str]:
    return [""] * len(scenes)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur by (B,) pixels."""
    at = torch.arange(-8, 9)
    kernel = torch.exp(-(at**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    flat = F.pad(x.flatten(0, 1)[None], (8, 8, 8, 8), mode="reflect")
    return F.conv2d(F.conv2d(flat, kernel[..., None], groups=3 * len(x)), kernel[:, :, None], groups=3 * len(x))[
        0
    ].view_as(x)


def vary(x: Tensor) -> Tensor:
    """Harmless variation, as samples have it: tones a little off, a little noise, edges a little softer."""
    n = len(x)
    x = x * (1 + 0.06 * (torch.rand(n, 3, 1, 1) - 0.5)) + 0.12 * (torch.rand(n, 3, 1, 1) - 0.5)
    soft = torch.rand(n) < 0.3
    x = torch.where(soft[:, None, None, None], _blur(x, 0.3 + 0.4 * torch.rand(n)), x)
    return x + 0.08 * torch.rand(n, 1, 1, 1) ** 2 * torch.randn_like(x)


def _spoil(x: Tensor, target: Attributes) -> tuple[Tensor, Attributes]:
    """Of every ten images blur one, drown one in noise and replace half of one by blobs."""
    n = len(x)
    kind = torch.rand(n)
    blurred, drowned, blob = kind < 0.1, (kind >= 0.1) & (kind < 0.2), (kind >= 0.2) & (kind < 0.25)
    t = 0.35 + 0.65 * torch.rand(n, 1, 1, 1)
    cells = torch.rand(n, 3, 5, 5) * 2.4 - 1.2
    blobs = F.interpolate(cells, size=(32, 32), mode="bicubic", align_corners=False)
    x = torch.where(blurred[:, None, None, None], _blur(x, 1.8 + 1.7 * torch.rand(n)), x)
    x = torch.where(drowned[:, None, None, None], (1 - t) * x + t * torch.randn_like(x), x)
    x = torch.where(blob[:, None, None, None], blobs, x)
    nothing = drowned | blob
    present = target.present

    def where(rows: Tensor, value: int, old: Tensor) -> Tensor:
        rows = rows[:, None] & present if old.ndim == 2 else rows
        return torch.where(rows, value, old)

    return x.clamp(-1.5, 1.5), replace(
        target,
        shape=where(blurred, len(SHAPES), target.shape),
        size=where(blurred, IGNORE, target.size),
        fill=where(blurred, IGNORE, target.fill),
        count=where(nothing, 0, target.count),
        background=where(nothing, len(COLOURS), target.background),
        style=where(nothing, len(STYLES), where(blurred, IGNORE, target.style)),
    )


def study(
    loss: Callable[..., Tensor],
    net: nn.Module,
    out: Path,
    settings: dict[str, Any],
    *,
    steps: int,
    batch_size: int,
    lr: float = 2e-3,
    seed: int,
    resume: bool,
    progress: bool,
) -> Fit:
    """Fit a judge to lessons, whose numbers are in batch["item"], with checkpoints in `out/run`."""
    return fit(
        loss,
        {"item": torch.arange(steps * batch_size)},
        net,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.02,
        ema=0.99,
        seed=seed,
        out=out / "run",
        resume=resume,
        settings=settings,
        progress=progress,
    )


def write_judge(out: Path, judge: nn.Module, about: dict[str, Any]) -> None:
    """Write a judge, and how it was made and measured, into a folder for `filled`."""
    write_tensors(out / "judge.safetensors", dict(judge.state_dict()))
    write_json(out / "judge.json", about)


def filled(judge: J, out: str | Path, recipe: str) -> J:
    """The judge with the weights that `train_judge` of a recipe wrote, not to be trained further.

    Raises:
        FileNotFoundError: there are none; says how to make them.
    """
    path = Path(out) / "judge.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no judge at {path}: suffuse.recipes.{recipe}.train_judge({str(out)!r}) makes one")
    judge.load_state_dict(read_tensors(path))
    return judge.eval().requires_grad_(False)


def train_judge(
    which: str,
    out: str | Path,
    *,
    steps: int | None = None,
    batch_size: int = 96,
    lr: float | None = None,
    seed: int | None = None,
    fresh: int = 4096,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a judge, measure it on fresh scenes, and write it to a folder in bf16.

    Args:
        which: "use" or "held_out". out: the folder, with checkpoints in `out/run`.
        steps, batch_size, lr: as for `fit`. seed: of weights and scenes. By default each judge has its own.
        fresh: scenes to measure it on. resume: go on from the newest checkpoint.
    Returns:
        What is written beside the weights: how it was made, and each attribute's accuracy. Seconds are all that were
        spent, processor seconds those of the last stretch.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(SEEDS.get(which, 0) if seed is None else seed)
        net = metrics.shapes.build(which)
    out, seed = Path(out), SEEDS[which] if seed is None else seed
    steps, lr = STEPS[which] if steps is None else steps, LR[which] if lr is None else lr

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            x, target = lesson(seed, batch["item"])
        return model.loss(x, target)

    began = time.process_time()
    settings = {"recipe": "judges", "which": which}
    how: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    done = study(loss, net, out, settings, resume=resume, progress=progress, **how)
    weights = halved(done.ema)
    judge = metrics.shapes.Judge(which, metrics.shapes.filled(which, weights), {})
    errors = metrics.shapes.accuracy(judge, Scenes(FRESH), fresh)
    spent = {"seconds": round(done.seconds, 1), "processor_seconds": round(time.process_time() - began, 1)}
    about = {"which": which, **how} | spent | {"accuracy": {name: value.to_json() for name, value in errors.items()}}
    return for_zoo(out / f"judge_{which}", weights, about)


def halved(net: nn.Module) -> dict[str, Tensor]:
    """A network's state in bf16, as the zoo keeps it; counts stay whole."""
    return {k: v.bfloat16() if v.is_floating_point() else v for k, v in net.state_dict().items()}


def for_zoo(folder: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Any]:
    """Write weights, and how they were made and measured, into a folder as the zoo keeps it; returns the latter."""
    with whole_folder(folder) as work:
        write_tensors(work / "model.safetensors", weights)
        write_json(work / "model.json", about)
    return about
