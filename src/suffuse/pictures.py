"""Pictures that can be made again: grids, film strips, animations and curves, with their recipe inside."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["animation", "curves", "grid", "loss_curve", "read_recipe", "save_figure", "save_png", "scatter"]

KEY = "suffuse"


def grid(x: Tensor, columns: int, *, scale: int = 1, gap: int = 1) -> Image:
    """A picture of many pictures, row by row.

    Args:
        x: (N, 1 or 3, H, W) in [-1, 1]; values outside are clipped.
        columns: pictures side by side. scale: pixels become squares of this side. gap: pixels between pictures.
    Raises:
        ValueError: x is not a batch of grey or colour images.
    """
    from PIL import Image

    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"pictures must be (N, 1 or 3, H, W), got {tuple(x.shape)}")
    n, _, h, w = x.shape
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (h + gap) + gap, columns * (w + gap) + gap), 40, dtype=torch.uint8)
    values = ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(n, 3, h, w)
    for i in range(n):
        top, left = (i // columns) * (h + gap) + gap, (i % columns) * (w + gap) + gap
        sheet[:, top : top + h, left : left + w] = values[i]
    sheet = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())


def save_png(image: Image, path: str | Path, recipe: dict[str, Any] | None = None) -> None:
    """Write a PNG; its recipe goes into it and into a JSON file beside it."""
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    if recipe is not None:
        text = json.dumps(recipe, indent=2, sort_keys=True)
        info.add_text(KEY, text)
        part = path.with_name(f".{path.name}.json.part")
        part.write_text(text + "\n")
        os.replace(part, path.with_name(f"{path.name}.json"))
    part = path.with_name(f".{path.name}.part")
    image.save(part, format="PNG", pnginfo=info)
    os.replace(part, path)


def save_figure(figure: Figure, path: str | Path, recipe: dict[str, Any] | None = None, *, dpi: int = 110) -> None:
    """Write a matplotlib figure as a PNG: the same figure gives the same bytes, with its recipe inside."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {} if recipe is None else {KEY: json.dumps(recipe, sort_keys=True)}
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, dpi=dpi, format="png", metadata={"Software": None, **about})
    os.replace(part, path)


def scatter(axes: Any, x: Tensor, reach: float, *, colour: str = "#2a6f97", size: float = 2) -> None:
    """Points (N, 2) on axes from -reach to reach both ways."""
    axes.scatter(x[:, 0], x[:, 1], s=size, color=colour, lw=0)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe inside a picture that suffuse made.

    Raises:
        FileNotFoundError: there is no such picture.
        ValueError: it is not a picture, or holds no recipe.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(KEY)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture") from None
    if text is None:
        raise ValueError(f"{path} holds no recipe: it was not made by suffuse, or was saved again by another program")
    return json.loads(text)


def animation(
    frames: Sequence[Image], path: str | Path, recipe: dict[str, Any], *, milliseconds: int = 90, hold: int = 1500
) -> None:
    """Write a looping GIF with its recipe as comment; the last frame stays for `hold` milliseconds."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    times = [milliseconds] * (len(frames) - 1) + [hold]
    frames[0].save(
        part,
        format="GIF",
        save_all=True,
        append_images=list(frames[1:]),
        duration=times,
        loop=0,
        comment=json.dumps(recipe, sort_keys=True),
    )
    os.replace(part, path)


def loss_curve(lines: Sequence[dict[str, float]], path: str | Path, recipe: dict[str, Any]) -> None:
    """Plot the loss against samples seen, from the lines of metrics.jsonl."""
    curves(lines, ("loss",), path, recipe, "training loss (mean squared error)")


def curves(
    lines: Sequence[dict[str, float]], names: Sequence[str], path: str | Path, recipe: dict[str, Any], title: str
) -> None:
    """Plot numbers against samples seen, from the lines of metrics.jsonl; the title says what they are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in zip(names, ("#2a6f97", "#e07a3f", "#4b8b3b", "#8a4f9e"), strict=False):
        axes.plot([e["samples"] for e in lines], [e[name] for e in lines], lw=1.2, color=colour, label=name)
    axes.set(xlabel="samples seen", ylim=(0, None))
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(frameon=False)
    save_figure(figure, path, recipe, dpi=120)
