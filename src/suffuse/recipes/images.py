"""A model of your own pictures: a folder, a .npz file or a set of SUFFUSE_DATA, with defaults by its size.

A flow (velocity on the linear schedule) of a U-Net, told the captions where most pictures have one, else the class
where there are classes, else nothing. One picture in ten, by lot, is kept out of training and measures it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse import losses, nets
from suffuse.data import Pictures, RandomFlip, cifar10, draws, emoji, fashion_mnist, images, mnist, npz, part
from suffuse.denoise import Denoiser
from suffuse.nets.conditions import Condition
from suffuse.nets.words import words
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import Fit, fit, save, validation
from suffuse.training.files import write_json

__all__ = ["again", "build", "defaults", "open_set", "split", "told", "train"]

SETS: dict[str, Callable[[], Pictures]] = {
    "mnist": partial(mnist, "train"),
    "fashion-mnist": partial(fashion_mnist, "train"),
    "cifar10": partial(cifar10, "train"),
    "emoji": emoji,
}
LR, EMA, DROPOUT, W = 1e-3, 0.999, 0.1, 2.0
KEPT_OUT = "by lot"
"""How `split` chose: a run from before says nothing, and its pictures kept out are others."""
VOCABULARY = 4096
"""Of more words, those are known that the most captions use."""


def open_set(data: str | Path, size: int | None = None, *, cache: str | Path | None = None) -> Pictures:
    """Read pictures of one size; what was left out is in `.findings`.

    Args:
        data: a folder (see `sf.data.images`); a .npz file with pictures "x", and "label" if there are classes; or one
            of `SETS`.
        size: of the square in pixels, a multiple of 4; by default 64 for a folder, and their own for the others.
        cache: folder for the decoded pixels of a folder too large for memory.
    Returns:
        The set; of one channel where every picture of it is grey.
    Raises:
        ValueError: there is no such thing, no usable picture, or the size is no multiple of 4.
    """
    if size is not None and (size < 8 or size % 4):
        raise ValueError(f"size must be a multiple of 4 and at least 8, got {size}")
    path = Path(data)
    if path.is_dir():
        found = images(path, size or 64, cache=cache)
    elif path.suffix == ".npz":
        found = _arrays(path)
    elif str(data) in SETS:
        found = SETS[str(data)]()
    else:
        raise ValueError(f"{data} is neither a folder, nor a .npz file, nor one of {', '.join(SETS)}")
    found = _square(found, size)
    if found.pixels.shape[1] == 3 and all(_grey(part) for part in found.pixels.split(256)):
        found = replace(found, pixels=found.pixels[:, :1])
    return found


def _grey(pixels: Tensor) -> bool:
    return bool((pixels[:, :1] == pixels).all())


def _arrays(path: Path) -> Pictures:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = set(file.files)
    except (OSError, ValueError):
        held = set()  # `npz` says what is wrong with it
    made = npz(path, {name: name for name in ("x", "label") if name in held})
    x, label = made["x"], made.get("label")
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"pictures in {path} must be (N, H, W, 1 or 3) of uint8, got {tuple(x.shape)} under 'x'")
    if x.abs().max() > 1:
        raise ValueError(f"pictures in {path} must be uint8, or float in [-1, 1], got values up to {x.abs().max():g}")
    if label is not None and (label.dtype != torch.int64 or label.ndim != 1 or int(label.min()) < 0):
        raise ValueError(f"'label' in {path} must be whole numbers (N,) from 0, got {label.dtype} {tuple(label.shape)}")
    classes = () if label is None else tuple(map(str, range(int(label.max()) + 1)))
    found = Pictures(_bytes(x), tuple(map(str, range(len(x)))), label, classes)
    found.findings.kept = len(x)
    return found


def _bytes(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _square(found: Pictures, size: int | None) -> Pictures:
    """The middle square of each, at this size."""
    high, wide = found.pixels.shape[-2:]
    side = min(high, wide)
    size = size or max(8, side // 4 * 4)
    if (high, wide) == (size, size):
        return found
    top, left = (high - side) // 2, (wide - side) // 2
    middle = found.pixels[..., top : top + side, left : left + side]
    scaled = [
        F.interpolate(part.float(), (size, size), mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
        for part in middle.split(1024)
    ]
    return replace(found, pixels=torch.cat(scaled))


def split(found: Pictures) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows kept out: one in ten by lot, the same each time, of at least 20.

    Not every tenth: where classes take turns, as in sets of ten classes they do, that would be one class.
    """
    lot = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    kept_out = lot[: len(found) // 10 if len(found) >= 20 else 0]
    return lot[len(kept_out) :].sort().values, kept_out.sort().values


def again(made: Run) -> tuple[Pictures, Tensor, Tensor]:
    """The set that a run was trained on, its rows for training and those kept out.

    Raises:
        ValueError: the data is gone or another, or the run kept out other pictures than `split` says now.
    """
    s = made.settings
    if s.get("kept_out") != KEPT_OUT:
        raise ValueError(f"{made.path} kept every tenth picture out, and now they are drawn by lot: train it anew")
    found, conditions = told(open_set(s["data"], s["size"], cache=s.get("cache")))
    if tuple(found.pixels.shape[1:]) != made.shape or conditions != made.model().conditions:
        raise ValueError(
            f"{s['data']} is no longer the set that {made.path} was trained on: train anew, or put it back"
        )
    return found, *split(found)


def defaults(n: int, size: int) -> dict[str, Any]:
    """What a set of n pictures of size x size is trained with.

    A hundred looks at each picture, within 4,000 and 40,000 steps; a network that grows with the set, and forgets
    some of itself (dropout) where the set is so small that it would learn it by heart.
    """
    batch = 64 if size <= 32 else 32 if size <= 64 else 16
    return {
        "steps": max(4000, min(40_000, 100 * n // batch)),
        "batch_size": batch,
        "width": 32 if n < 2000 else 48 if n < 20_000 else 64,
        "forget": 0.2 if n < 2000 else 0.1 if n < 20_000 else 0.0,
    }


def build(shape: tuple[int, ...], width: int, forget: float, conditions: dict[str, Condition]) -> Denoiser:
    """The untrained model: levels down to 8 pixels or where halving ends, attention from 16 pixels down.

    Args:
        shape: (channels, side, side). width: channels of the finest level. forget: dropout in the network.
        conditions: what it may be told.
    """
    sides = [shape[-1]]
    while sides[-1] > 8 and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    attention = tuple(i for i, side in enumerate(sides) if side <= 16) or (-1,)
    multipliers = tuple(min(2**i, 4) for i in range(len(sides)))
    net = nets.UNet(shape[0], width, multipliers, 1, attention, dropout=forget, conditions=conditions)
    return Denoiser(net, Linear(), predicts="velocity")


def told(found: Pictures) -> tuple[Pictures, dict[str, Condition]]:
    """The set with what a model of it is told, and the conditions: "text", "label" or none.

    Captions count where at least half of the pictures have one. Words beyond the vocabulary, or the 64th of a caption,
    are left out; a picture without a caption is told nothing.
    """
    spoken = [_words(caption) for caption in found.captions]
    if sum(map(bool, spoken)) * 2 >= len(found):
        used = Counter(word for caption in spoken for word in set(caption))
        vocabulary = tuple(sorted(word for word, _ in sorted(used.items(), key=lambda e: (-e[1], e[0]))[:VOCABULARY]))
        number = {word: i for i, word in enumerate(vocabulary)}
        rows = [[number[word] for word in caption if word in number][:64] for caption in spoken]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
        return replace(found, label=None, classes=()).given(text=ids), {"text": nets.Words(vocabulary, 128)}
    if found.label is not None:
        return found, {"label": nets.Label(len(found.classes))}
    return found, {}


def _words(caption: str) -> list[str]:
    try:
        return words(caption)
    except ValueError:
        return []


def train(
    out: str | Path,
    *,
    data: str | Path,
    size: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    width: int | None = None,
    forget: float | None = None,
    lr: float = LR,
    ema: float = EMA,
    dropout: float = DROPOUT,
    flip: bool = False,
    cache: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train on a set of pictures and write a run folder; data.json in it names every file that was odd.

    Args:
        out: the folder. data, size, cache: as for `open_set`. seed: of weights, order and noise.
        steps, batch_size: as for `fit`; width, forget: as for `build`; by default of `defaults`.
        lr, ema: as for `fit`. dropout: how often a picture's caption or class is withheld.
        flip: also train on pictures mirrored left to right; not for letters.
        tell: gets what was found in the data, in words, before training begins.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    Raises:
        ValueError: no usable data.
    """
    out = Path(out)
    found, conditions = told(open_set(data, size, cache=cache))
    mine, kept_out = split(found)
    given = {"steps": steps, "batch_size": batch_size, "width": width, "forget": forget}
    chosen = defaults(len(mine), found.pixels.shape[-1]) | {k: v for k, v in given.items() if v is not None}
    shape = tuple(found.pixels.shape[1:])
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build(shape, chosen["width"], chosen["forget"], conditions)
    if tell is not None:
        tell(str(found.findings))
        tell(f"{len(mine):,} to train on, {len(kept_out):,} kept out; told {_takes(found, conditions)}; {chosen}")
    dropout = dropout if conditions else 0.0
    times = partial(losses.shifted, factor=max(1.0, shape[-1] / 32), times=losses.logit_normal)
    every = max(1, chosen["steps"] // 10)
    source = str(data) if str(data) in SETS else str(Path(data).resolve())
    done: Fit = fit(
        partial(losses.denoising, times=times, dropout=dropout),
        draws(part(found, mine), seed=seed, augment=[RandomFlip()] if flip else []),
        model,
        steps=chosen["steps"],
        batch_size=chosen["batch_size"],
        lr=lr,
        weight_decay=0.01,
        ema=ema,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "images", "data": source, "dropout": dropout, "flip": flip, "kept_out": KEPT_OUT},
        watch=validation(found[kept_out[:256]], bins=4) if len(kept_out) else None,
        watch_every=every,
        log_every=min(50, every),
        progress=progress,
    )
    save(done.ema, out / "model")
    write_json(out / "data.json", {"classes": list(found.classes), "findings": found.findings.to_json()})
    settings = {"data": source, "size": shape[-1], "seed": seed} | chosen
    settings |= {"lr": lr, "ema": ema, "dropout": dropout, "flip": flip, "kept_out": KEPT_OUT}
    settings |= {"w": W} if conditions and dropout else {}
    settings |= {"cache": str(Path(cache).resolve())} if cache else {}
    made = Run(out, "images", shape, settings, round(done.seconds, 2))
    made.write()
    return made


def _takes(found: Pictures, conditions: dict[str, Condition]) -> str:
    if "text" in conditions:
        return f"captions of {len(conditions['text'].vocabulary):,} words"  # type: ignore[attr-defined]
    return f"classes {', '.join(f'{i} {name}' for i, name in enumerate(found.classes))}" if conditions else "nothing"
