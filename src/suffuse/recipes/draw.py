"""Sampling from a run into a picture, from a recipe that makes the same bytes again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.recipes.run import Run

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draw", "recipe_of", "sample_many", "stamp"]

BATCH = 256


def recipe_of(
    run: Path,
    *,
    label: Sequence[int] = (),
    n: int = 64,
    w: float = 1.0,
    sampler: str | None = None,
    order: int | None = None,
    eta: float | None = None,
    steps: int = 20,
    grid: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What `draw` needs: the run, and the options of `suffuse sample`."""
    return {
        "run": str(run),
        "label": list(label),
        "n": n,
        "w": w,
        "sampler": sampler,
        "order": order,
        "eta": eta,
        "steps": steps,
        "grid": grid,
        "seed": seed,
    }


def stamp(made: Run) -> dict[str, Any]:
    """What made a picture: the weights' hash and the versions."""
    import torch

    from suffuse import __version__

    return {"model_hash": made.model_hash, "suffuse": __version__, "torch": torch.__version__}


def sample_many(denoiser: Any, n: int, shape: tuple[int, ...], seed: int, **how: Any) -> Tensor:
    """n samples (n, *shape), a batch of a size that fits a CPU's cache at a time: the same as all at once.

    Args:
        denoiser: with `.rows`, conditions for all n. how: `sampler`, `steps`, `nfe`, `grid` of `sample`.
    """
    import torch

    from suffuse import noise, sample

    parts = []
    for i in range(0, n, BATCH):
        start = noise((min(BATCH, n - i), *shape), seed, first=i)
        parts.append(sample(denoiser.rows(slice(i, i + BATCH)), start, seed=seed, first=i, **how))
    return torch.cat(parts)


def draw(recipe: dict[str, Any], out: Path, *, run: Path | None = None) -> None:
    """Sample what a recipe says and write it with the recipe inside.

    Args:
        recipe: from `recipe_of`, or read from a picture. out: the PNG to write. run: the run's folder, if it moved.
    Raises:
        ValueError: the run holds other weights than the recipe names; options that do not fit the model.
    """
    import torch

    from suffuse import grids, guide, pictures, samplers

    made = Run.open(run or recipe["run"])
    model, n = made.model(), recipe["n"]
    if "model_hash" in recipe and recipe["model_hash"] != made.model_hash:
        raise ValueError(f"{made.path} holds model {made.model_hash}, the picture was made by {recipe['model_hash']}")
    if n < 1:
        raise ValueError(f"--n must be at least 1, got {n}")
    rule = None
    if recipe["sampler"] is not None:
        known = samplers.rules()
        if recipe["sampler"] not in known:
            raise ValueError(f"unknown sampler {recipe['sampler']!r}: one of {', '.join(known)}")
        rule = known[recipe["sampler"]](**{k: recipe[k] for k in ("order", "eta") if recipe[k] is not None})
    elif recipe["order"] is not None or recipe["eta"] is not None:
        raise ValueError("--order and --eta belong to a sampler: name one with --sampler")
    denoiser: Any = model
    if recipe["label"]:
        labels = recipe["label"]
        denoiser = model.given(label=torch.tensor([labels[i % len(labels)] for i in range(n)]))
    if recipe["w"] != 1.0:
        blank = [name for name, spec in model.conditions.items() if not getattr(spec, "optional", True)]
        if blank:
            raise ValueError(
                f"w={recipe['w']:g} needs a negative, and this model has no null {blank[0]!r}: train it "
                "with label dropout, or leave out --w"
            )
        if not recipe["label"]:
            raise ValueError(f"w={recipe['w']:g} guides towards a label: say which with --label")
        denoiser = guide(denoiser, model, recipe["w"])
    spacing = None if recipe["grid"] is None else getattr(grids, recipe["grid"])
    x = sample_many(denoiser, n, made.shape, recipe["seed"], sampler=rule, steps=recipe["steps"], grid=spacing)
    columns = max(1, round(n**0.5))
    sheet = pictures.grid(x, columns, scale=max(1, 48 // made.shape[-1]))
    pictures.save_png(sheet, out, recipe | stamp(made))
