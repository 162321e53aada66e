"""Sampling from a run into a picture, from a recipe that makes the same bytes again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suffuse.recipes.run import Run

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "decoded",
    "draw",
    "encoded",
    "picture_shape",
    "read_picture",
    "recipe_of",
    "sample_many",
    "stamp",
    "told",
]

BATCH = 256


def recipe_of(
    run: Path,
    *,
    label: Sequence[int] = (),
    prompt: Sequence[str] = (),
    any_words: bool = False,
    n: int = 64,
    w: float | None = None,
    between: tuple[float, float] | None = None,
    sampler: str | None = None,
    order: int | None = None,
    eta: float | None = None,
    steps: int = 20,
    grid: str | None = None,
    seed: int = 0,
    control: Sequence[str | Path] = (),
    hint: Sequence[str | Path] = (),
    strength: Sequence[float] = (),
    acting: tuple[float, float] = (0.0, 1.0),
    drawn: bool = False,
) -> dict[str, Any]:
    """What `draw` needs: the run, and the options of `suffuse sample`."""
    steered = {
        "control": [str(run) for run in control],
        "hint": [str(file) for file in hint],
        "strength": list(strength),
        "acting": list(acting),
        "drawn": drawn,
    }
    if not control and (hint or strength):
        raise ValueError("--hint and --strength belong to a control: name its run with --control")
    return {
        "run": str(run),
        "label": list(label),
        "prompt": list(prompt),
        "any_words": any_words,
        "n": n,
        "w": w,
        "between": None if between is None else list(between),
        "sampler": sampler,
        "order": order,
        "eta": eta,
        "steps": steps,
        "grid": grid,
        "seed": seed,
    } | (steered if control else {})


def stamp(made: Run) -> dict[str, Any]:
    """What made a picture: the weights' hash and the versions."""
    import torch

    from suffuse import __version__

    return {"model_hash": made.model_hash, "suffuse": __version__, "torch": torch.__version__}


def sample_many(
    denoiser: Any, n: int, shape: tuple[int, ...], seed: int, *, progress: str | None = None, **how: Any
) -> Tensor:
    """n samples (n, *shape), a batch of a size that fits a CPU's cache at a time: the same as all at once.

    Several processes share every batch, and each gets the whole.

    Args:
        denoiser: with `.rows`, conditions for all n. progress: what a progress bar is called, None for none.
        how: `sampler`, `steps`, `nfe`, `grid` of `sample`.
    """
    import torch

    from suffuse import noise, sample
    from suffuse.training import gathered, peers
    from suffuse.training.progress import Progress

    def some(i: int, k: int) -> Tensor:
        return sample(denoiser.rows(slice(i, i + k)), noise((k, *shape), seed, first=i), seed=seed, first=i, **how)

    parts = []
    with Progress(progress or "", n, show=progress is not None and peers().first) as bar:
        for i in range(0, n, BATCH):
            parts.append(gathered(min(BATCH, n - i), lambda j, k, i=i: some(i + j, k)))
            bar.update(min(i + BATCH, n), "samples")
    return torch.cat(parts)


def decoded(model: Any, z: Tensor) -> Tensor:
    """Pictures in [-1, 1] of what a model samples, decoded 64 at a time where those are latents."""
    import torch

    if model.codec is None:
        return z.clamp(-1, 1)
    with torch.no_grad():
        return torch.cat([model.codec.decode(part) for part in z.split(64)]).clamp(-1, 1)


def encoded(model: Any, x: Tensor, seed: int = 0) -> Tensor:
    """What a model denoises of pictures: themselves, or their latents, 64 at a time with seeds from this one on."""
    import torch

    if model.codec is None:
        return x
    with torch.no_grad():
        return torch.cat([model.codec.encode(part, seed + i) for i, part in enumerate(x.split(64))])


def read_picture(path: Path, side: int, channels: int) -> Tensor:
    """A picture file as (1, C, side, side) in [-1, 1]: its middle square, scaled.

    Raises:
        FileNotFoundError: there is none. ValueError: not a picture, or a folder.
    """
    import torch

    from suffuse.data.decode import picture

    if path.is_dir():
        raise ValueError(f"{path} is a folder: name one picture")
    if not path.exists():
        raise FileNotFoundError(f"there is no picture at {path}")
    pixels, odd = picture(path.read_bytes(), side, channels=channels)
    if pixels is None:
        raise ValueError(f"{path} is not a picture that can be read: {', '.join(odd)}")
    return torch.tensor(pixels).reshape(1, channels, side, side).float() / 127.5 - 1


def picture_shape(model: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels and side of the pictures that a model's samples (*shape) are, or are the latents of."""
    if model.codec is None:
        return shape[0], shape[-1]
    return model.codec.net.channels, model.codec.factor * shape[-1]


def draw(recipe: dict[str, Any], out: Path, *, run: Path | None = None) -> None:
    """Sample what a recipe says and write it with the recipe inside: pictures in a grid, or points in the plane.

    Of several processes the first goes on alone.

    Args:
        recipe: from `recipe_of`, or read from a picture. out: the PNG to write. run: the run's folder, if it moved.
    Raises:
        ValueError: the run holds other weights than the recipe names; options that do not fit the model.
    """
    from suffuse import grids, pictures
    from suffuse.training import alone

    made = Run.open(run or recipe["run"])
    n = recipe["n"]
    if "model_hash" in recipe and recipe["model_hash"] != made.model_hash:
        raise ValueError(f"{made.path} holds model {made.model_hash}, the picture was made by {recipe['model_hash']}")
    if n < 1:
        raise ValueError(f"--n must be at least 1, got {n}")
    recipe = recipe | {name: recipe[name] or made.settings.get(name) for name in ("sampler", "grid")}
    rule = _rule(recipe)
    labels, prompts, guided = recipe["label"], recipe.get("prompt", []), (recipe["w"], recipe.get("between"))
    steered = None
    if recipe.get("control"):
        from suffuse.recipes.control import steered_by

        how = {k: recipe[k] for k in ("strength", "acting", "drawn")}
        steered = steered_by(made, recipe["control"], recipe["hint"], n, **how)
    denoiser, guidance = told(made, n, labels, prompts, *guided, any_words=recipe["any_words"], model=steered)
    spacing = None if recipe["grid"] is None else getattr(grids, recipe["grid"])
    x = sample_many(denoiser, n, made.shape, recipe["seed"], sampler=rule, steps=recipe["steps"], grid=spacing)
    alone()
    about = recipe | guidance | stamp(made)
    if made.shape == (2,):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 4), layout="constrained")
        pictures.scatter(figure.subplots(), x, 1.15 * x.abs().max().item(), size=4)
        pictures.save_figure(figure, out, about)
        return
    x = decoded(denoiser, x)
    columns = max(1, round(n**0.5))
    sheet = pictures.grid(x, columns, scale=max(1, 96 // x.shape[-1]))
    pictures.save_png(sheet, out, about)


def _rule(recipe: dict[str, Any]) -> Any:
    from suffuse import samplers

    if recipe["sampler"] is not None:
        known = samplers.rules()
        if recipe["sampler"] not in known:
            raise ValueError(f"unknown sampler {recipe['sampler']!r}: one of {', '.join(known)}")
        return known[recipe["sampler"]](**{k: recipe[k] for k in ("order", "eta") if recipe[k] is not None})
    if recipe["order"] is not None or recipe["eta"] is not None:
        raise ValueError("--order and --eta belong to a sampler: name one with --sampler")
    return None


def told(
    made: Run,
    n: int,
    labels: Sequence[int],
    prompts: Sequence[str],
    w: float | None,
    between: Sequence[float] | None = None,
    *,
    any_words: bool = False,
    model: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """The model of a run told labels and prompts for n rows, in turn, and guided; and "w" and "between".

    Args:
        w: guidance scale; None is the run's own if it is told anything, else 1, which is off. A student with guidance
            folded in is told it.
        between: times where guidance acts; None is the run's own, else all.
        any_words: leave out words that the model does not know. model: the run's, where it is open already.
    Raises:
        ValueError: numbers of labels and prompts that differ; what the model is not told, or has no null for; a scale
            that a student did not learn.
    """
    import torch

    from suffuse import guide

    model = made.model() if model is None else model
    own = float(made.settings.get("w", 1.0))
    folded = made.recipe == "distil" and "w" not in model.conditions
    if folded and own != 1 and w not in (None, 1):
        raise ValueError(f"guidance of w={own:g} is folded into this student and would act twice: leave out --w")
    w = float((own if (prompts or labels) and not folded else 1.0) if w is None else w)
    if prompts and labels and len(prompts) != len(labels):
        raise ValueError(f"--prompt has {len(prompts)} values and --label {len(labels)}: give as many of both")
    said: dict[str, Any] = {}
    if labels:
        said["label"] = torch.tensor([labels[i % len(labels)] for i in range(n)])
    if prompts:
        words = model.conditions.get("text")
        if words is None:
            takes = ", ".join(model.conditions) or "no conditions"
            raise ValueError(f"this model is not told text: it takes {takes}")
        if any_words:
            prompts = [words.known(text) for text in prompts]
        ids = words.ids(prompts, "--prompt")
        said["text"] = ids[torch.arange(n) % len(ids)]
    if "w" in model.conditions:  # guidance is folded in: it is told the scale, and guided no more
        low, high = made.settings.get("scales", (-math.inf, math.inf))
        if not low <= w <= high:
            raise ValueError(f"this student learned guidance from w={low:g} to {high:g}, got w={w:g}")
        return model.given(**said, w=torch.full((n,), w)), {"w": w, "between": None}
    denoiser = model.given(**said) if said else model
    if w == 1.0:
        return denoiser, {"w": w, "between": None}
    blank = [name for name, spec in model.conditions.items() if not getattr(spec, "optional", True)]
    if blank:
        raise ValueError(
            f"w={w:g} needs a negative, and this model has no null {blank[0]!r}: train it "
            "with label dropout, or leave out --w"
        )
    if not said:
        options = {"label": "--label", "text": "--prompt"}
        needed = " or ".join(options[name] for name in model.conditions if name in options) or "a condition"
        raise ValueError(f"w={w:g} guides towards what the model is told: say what with {needed}")
    low, high = made.settings.get("between", (0.0, 1.0)) if between is None else between
    return guide(denoiser, model, w, between=(low, high)), {"w": w, "between": [low, high]}
