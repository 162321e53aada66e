"""Editing a picture by score distillation: from what it shows to what it shall show, the rest kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import losses, pictures
from suffuse.denoise import Denoiser
from suffuse.guidance import guide
from suffuse.losses import distillation
from suffuse.recipes.draw import decoded, encoded, picture_shape, read_picture, stamp
from suffuse.recipes.run import Run

__all__ = ["METHODS", "edit", "edited", "told"]

METHODS = ("pds", "dds", "sds")


def told(model: Denoiser, what: str | Sequence[str]) -> Denoiser:
    """The model told a text, or where it takes no text a class by its number; one for all rows, or one a row.

    Raises:
        ValueError: words it does not know, no number, a model that takes neither.
    """
    if "text" in model.conditions:
        return model.given(text=what)
    if "label" not in model.conditions:
        takes = ", ".join(model.conditions) or "no conditions"
        raise ValueError(f"an edit tells the model text or a label, and this one takes {takes}")
    each = [what] if isinstance(what, str) else list(what)
    if wrong := [one for one in each if not one.strip().isdecimal()]:
        raise ValueError(f"this model takes labels, which are numbers, got {wrong[0]!r}")
    return model.given(label=torch.tensor([int(one) for one in each]))


def edited(
    model: Denoiser,
    x: Tensor,
    *,
    source: str | Sequence[str],
    target: str | Sequence[str],
    method: str = "pds",
    w: float = 7.5,
    steps: int = 200,
    lr: float = 0.05,
    seed: int = 0,
) -> Tensor:
    """Pictures x (B, C, H, W) in [-1, 1], moved from what they show to what they shall show, in the model's latents.

    Args:
        model: untold; with a null where w is not 1. source, target: as for `told`.
        method: "pds", "dds", or "sds", which knows the target only. w: guidance. steps, lr, seed: of `descend`.
    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(METHODS)}")
    aim, from_ = told(model, target), told(model, source)
    goal, before = (aim, from_) if w == 1 else (guide(aim, model, w), guide(from_, model, w))

    def loss(image: Tensor, share: float) -> Tensor:
        if method == "sds":
            return losses.sds(goal, image, times=distillation.annealed(share))
        of: Any = losses.pds if method == "pds" else partial(losses.dds, times=distillation.annealed(share))
        return of(goal, image, before, x)

    x = encoded(model, x, seed)
    return decoded(model, distillation.descend(loss, x, steps=steps, lr=lr, seed=seed))


def edit(run: str | Path, image: Path, out: Path, **how: Any) -> None:
    """Edit the picture in a file with the model of a run; the recipe goes inside the new one.

    Args:
        run: a run's folder, or the name of a model that ships. image: any picture; its middle square is scaled to
            the model's size. out: the PNG to write. how: of `edited`.
    Raises:
        ValueError: not a picture; a folder in its place or in that of `out`; a run of a student; what `edited` raises.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the picture to write in it")
    made = Run.open(run)
    if made.recipe == "distil":
        raise ValueError(
            f"{made.path} is a student of few steps, which answers with samples and no means that an edit compares: "
            f"use its teacher, {made.settings['teacher']}"
        )
    model = made.model()
    channels, side = picture_shape(model, made.shape)
    x = read_picture(image, side, channels)
    after = edited(model, x, **how)
    about = {"made by": "suffuse edit", "image": str(image), "run": str(made.path), **how} | stamp(made)
    pictures.save_png(pictures.grid(after, 1, scale=max(1, 48 // side)), out, about)
