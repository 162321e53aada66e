"""The towers of the shapes world, trained until a caption is nearest to its own picture, and a picture to its caption.

The convolutions are those of the judge in use and stay as they are, as Zhai et al. 2022 (LiT) lock a tower that can
already see; all else is trained. Beside the other captions of the batch every picture refuses captions that are wrong
in one way: colours exchanged, the relation reversed, or its axis turned.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse import metrics
from suffuse.data.shapes import CHANGES, Scenes, changed
from suffuse.metrics.clip_nets import WORDS, TwoTowers, contrast
from suffuse.recipes.judges import FRESH, for_zoo, halved, vary
from suffuse.training import fit

__all__ = ["lesson", "measure", "train_clip"]

SEED, STEPS, BATCH, LR = 4_000_037, 240, 192, 2e-3


def lesson(seed: int, items: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (B, 3, 32, 32), ids of their captions (B, L), ids of wrong ones (B, L), which of those are wrong (B,).

    Every combination, one to three objects. Uses torch's generator, which `fit` seeds.
    """
    n = len(items)
    parts = items.tensor_split([round(0.45 * n), round(0.9 * n)])
    worlds = Scenes(seed), Scenes(seed, held_out=True), Scenes(seed, 64, counts=(0.1, 0.2, 0.7))
    images, said, wrong, usable = [], [], [], []
    for scenes, part in zip(worlds, parts, strict=True):
        for change, some in zip(CHANGES, part.tensor_split(len(CHANGES)), strict=True):
            if not len(some):
                continue
            batch = scenes[some]
            images.append(F.avg_pool2d(batch.images, scenes.size // 32))
            said += batch.captions
            others, are = changed(batch, change)
            wrong += others
            usable.append(are)
    ids = WORDS.ids(said + wrong)
    return vary(torch.cat(images)), ids[: len(said)], ids[len(said) :], torch.cat(usable)


def measure(towers: metrics.Towers, n: int = 2000, *, seed: int = FRESH) -> dict[str, metrics.Measured]:
    """What towers can tell apart on fresh scenes.

    Returns:
        "score": 100 cos of scenes and their captions. "retrieval": the own caption found among 64 of as many scenes.
        For each of `CHANGES`, on scenes of two objects whose captions say everything: how often the true caption
        scores higher than the wrong one.
    """
    batch = Scenes(seed)(0, n)
    found = {
        "score": metrics.clip_score(batch.images, batch.captions, towers),
        "retrieval": metrics.clip_retrieval(batch.images, batch.captions, towers),
    }
    pairs = Scenes(seed, counts=(0.0, 1.0), identical=0.0, full=True)(0, n)
    for change in CHANGES:
        said, wrong = changed(pairs, change)
        rows = wrong.nonzero()[:, 0].tolist()
        true, false = [pairs.captions[i] for i in rows], [said[i] for i in rows]
        found[change] = metrics.clip_choice(pairs.images[rows], true, false, towers)
    return found


def train_clip(
    out: str | Path,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
    lr: float = LR,
    seed: int = SEED,
    fresh: int = 2000,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train both towers, measure them on fresh scenes, and write them to a folder in bf16.

    Args:
        out: the folder, with checkpoints in `out/run`. steps, batch_size, lr: as for `fit`.
        seed: of weights and scenes. fresh: scenes to measure on.
        resume: go on from the newest checkpoint. overwrite: begin anew where there are some.
    Returns:
        What is written beside the weights: how it was made, and what `measure` found.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = TwoTowers()
    known, out = metrics.shapes.judge("use").net.state_dict(), Path(out)
    net.image.convolutions.load_state_dict({k: known[k] for k in net.image.convolutions.state_dict()})
    net.image.convolutions.requires_grad_(False)

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        model.image.convolutions.eval()  # their statistics are locked as well
        x, said, wrong, usable = lesson(seed, batch["item"])
        text = model.text(torch.cat([said, wrong]))
        return contrast(model.image(x), text[: len(x)], model.logit_scale, text[len(x) :], usable)

    began = time.process_time()
    done = fit(
        loss,
        {"item": torch.arange(steps * batch_size)},
        net,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.01,
        optimizer="muon",
        ema=0.98,
        decay=0.5,
        seed=seed,
        out=out / "run",
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "clip"},
        log_every=10,
        progress=progress,
    )
    weights = halved(done.ema)
    found = measure(metrics.Towers.of_shapes(weights), fresh)
    about: dict[str, Any] = {"seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr}
    about |= {"seconds": round(done.seconds, 1), "processor_seconds": round(time.process_time() - began, 1)}
    about |= {"measured": {name: value.to_json() for name, value in found.items()}}
    return for_zoo(out / "clip_shapes", weights, about)
