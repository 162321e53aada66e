"""Crops of endless friezes, told their ground in words: a model of small squares for panoramas and textures.

A flow (velocity on the linear schedule) of 32 x 32 crops of `data.shapes.Frieze`, a quarter of them without shapes:
"shapes on a striped blue background", "a striped blue background". Its judge says whether a window could be a frieze's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import losses, metrics, nets
from suffuse.data.shapes import COLOURS, STYLES, VOCABULARY, Batch, Frieze
from suffuse.denoise import Denoiser
from suffuse.nets.conditions import Condition
from suffuse.recipes.judges import broken, filled, study, vary, write_judge
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import Fit, fit, save

__all__ = ["FriezeJudge", "bared", "build", "crops", "lesson", "read_judge", "train", "train_judge"]

SHAPE = (3, 32, 32)
STEPS, BATCH, LR, EMA, DROPOUT, W = 6000, 64, 1.5e-3, 0.999, 0.1, 2.0
JUDGE_STEPS, JUDGE_SEED = 1200, 5_000_011
LONGEST = 6
"""Words of the longest caption."""


def build() -> Denoiser:
    """The untrained model: a small U-Net that predicts the velocity and may be told a text."""
    told: dict[str, Condition] = {"text": nets.Words(VOCABULARY, 96, layers=1)}
    net = nets.UNet(3, width=40, multipliers=(1, 2, 2), blocks=1, attention=(2,), conditions=told)
    return Denoiser(net, Linear(), predicts="velocity")


def crops(seed: int, items: Tensor) -> tuple[Tensor, list[str]]:
    """Images (B, 3, 32, 32) and captions of crops of friezes; every fourth item shows the bare ground."""
    batch, bare = Frieze(seed)[items], items % 4 == 0
    shown = bared(batch, bare)
    said = [
        text.replace("shapes on ", "") if empty else text
        for text, empty in zip(batch.captions, bare.tolist(), strict=True)
    ]
    return shown.images, said


def bared(batch: Batch, bare: Tensor) -> Batch:
    """Without the shapes of some rows (B,)."""
    a = batch.attributes
    return Batch(replace(a, shape=torch.where(bare[:, None], -1, a.shape)), batch.decor, batch.width, batch.say)


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
    """Train on crops and write a run folder; interrupted, it goes on with `resume`.

    Args:
        out: the folder. seed: of weights, friezes and noise. steps, batch_size, lr, ema: as for `fit`.
        dropout: how often the caption is withheld.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    """
    out = Path(out)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build()
    text = model.conditions["text"]

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        images, said = crops(seed, batch["item"])
        told = {"x": images, "text": text.ids(said, length=LONGEST)}
        return losses.denoising(model, told, times=losses.logit_normal, dropout=dropout)

    done: Fit = fit(
        loss,
        {"item": torch.arange(steps * batch_size)},
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.01,
        optimizer="muon",
        ema=ema,
        decay=0.3,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "frieze", "dropout": dropout},
        log_every=50,
        progress=progress,
    )
    save(done.ema, out / "model")
    settings = {
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "ema": ema,
        "dropout": dropout,
        "w": W,
    }
    made = Run(out, "frieze", SHAPE, settings, round(done.seconds, 2))
    made.write()
    return made


class FriezeJudge(nn.Module):
    """Reads windows (B, 3, 32, 32): one score for "could be of a frieze", four styles, ten colours of the ground."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        w = width

        def layer(a: int, b: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())

        self.body = nn.Sequential(
            layer(3, w, 1), layer(w, w, 2), layer(w, 2 * w, 1), layer(2 * w, 2 * w, 2), layer(2 * w, 4 * w, 2)
        )
        self.scores = nn.Sequential(nn.Linear(8 * w, 128), nn.SiLU(), nn.Linear(128, 1 + len(STYLES) + len(COLOURS)))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 15)."""
        h = self.body(x.clamp(-1.2, 1.2))
        return self.scores(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))

    @torch.no_grad()
    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each window could be of a frieze (B,), and its look: probabilities (B, 14) of style and colour."""
        scores = torch.cat([self(part) for part in x.float().split(512)])
        _, style, colour = scores.split((1, len(STYLES), len(COLOURS)), 1)
        return scores[:, 0] > 0, torch.cat([style.softmax(1), colour.softmax(1)], 1)


def lesson(seed: int, items: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows (B, 3, 32, 32), whether each is of a frieze (B,), its style and the colour of its ground (B,).

    Half are spoilt, in the ways a panorama may go wrong: two friezes side by side, or one turning into another; a part
    left out, or moved; two on top of each other; shapes of two kinds in one; blur, noise, wrong contrast.
    """
    half = len(items) // 2
    batch, other = bared(Frieze(seed)[items], items % 8 == 0), Frieze(seed + 1)[items].images
    clean, a = batch.images, batch.attributes
    x, n, kind = clean.clone(), len(items) - half, torch.randint(0, 8, (len(items) - half,))
    mine, theirs = clean[half:], other[half:]
    at = torch.arange(32.0)
    cut = torch.randint(8, 25, (n, 1, 1, 1))
    wide = torch.where(torch.rand(n, 1, 1, 1) < 0.5, 0.5, 16 * torch.rand(n, 1, 1, 1) + 2)
    ramp = (0.5 + (at - cut) / wide).clamp(0, 1)
    moved = torch.stack([v.roll(int(k), 1) for v, k in zip(mine, torch.randint(5, 28, (n,)), strict=True)])
    later = Frieze(seed).crop(items[half:], Frieze(seed)[items[half:]].decor.start.long() + 12).images
    mix = 0.3 + 0.4 * torch.rand(n, 1, 1, 1)
    pieces = broken(Frieze(seed)[items[half:]])[0]
    blur = F.avg_pool2d(F.pad(mine, (2, 2, 2, 2), mode="replicate"), 5, 1)
    noisy = mine + (0.15 + 0.5 * torch.rand(n, 1, 1, 1)) * torch.randn_like(mine)
    flat = mine.mean((2, 3), keepdim=True) + (mine - mine.mean((2, 3), keepdim=True)) * 0.45
    spoilt = torch.stack(
        [
            torch.lerp(mine, theirs, ramp),
            torch.where(at >= cut, moved, mine),
            torch.where(at >= cut, later, mine),
            torch.lerp(mine, theirs, mix),
            pieces,
            blur,
            noisy,
            flat,
        ]
    )
    x[half:] = spoilt[kind, torch.arange(n)]
    real = torch.arange(len(items)) < half
    # what is not certain to differ is not said to be spoilt
    real[half:] = (x[half:] - mine).abs().mean((1, 2, 3)) < 0.02
    return vary(x), real, a.style, a.background


def _loss(model: Any, x: Tensor, real: Tensor, style: Tensor, colour: Tensor) -> Tensor:
    scores = model(x)
    first, s, c = scores.split((1, len(STYLES), len(COLOURS)), 1)
    told = F.cross_entropy(s, style, reduction="none") + F.cross_entropy(c, colour, reduction="none")
    return F.binary_cross_entropy_with_logits(first[:, 0], real.float(), reduction="none") + real * told


def train_judge(
    out: str | Path, *, steps: int = JUDGE_STEPS, batch_size: int = 96, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Train the judge on friezes of a seed of its own, measure it on others, and write it to a folder.

    Args:
        out: the folder. steps, batch_size: as for `fit`. resume: go on from the newest checkpoint.
    Returns:
        What is written beside the weights: "real", "spoilt", "style", "colour", the shares it reads right.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(JUDGE_SEED)
        net = FriezeJudge()
    out = Path(out)

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            made = lesson(JUDGE_SEED, batch["item"])
        return _loss(model, *made)

    about: dict[str, Any] = {"steps": steps, "batch_size": batch_size}
    settings = {"recipe": "frieze", "judge": True}
    done = study(loss, net, out, settings, seed=JUDGE_SEED, resume=resume, progress=progress, **about)
    judge = done.ema.eval()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        x, real, style, colour = lesson(JUDGE_SEED + 2, torch.arange(2048))
    says, look = judge.read(x)
    about |= {"seconds": round(done.seconds, 1)}
    for name, right in (
        ("real", says[real]),
        ("spoilt", ~says[~real]),
        ("style", (look[:, : len(STYLES)].argmax(1) == style)[real]),
        ("colour", (look[:, len(STYLES) :].argmax(1) == colour)[real]),
    ):
        how = (
            f"share of {name} windows read right" if name in ("real", "spoilt") else f"{name} read right, real windows"
        )
        about[name] = metrics.proportion(int(right.sum()), len(right), how).to_json()
    write_judge(out, judge, about)
    return about


def read_judge(out: str | Path) -> FriezeJudge:
    """The judge that `train_judge` wrote.

    Raises:
        FileNotFoundError: there is none; says how to make one.
    """
    return filled(FriezeJudge(), out, "frieze")
