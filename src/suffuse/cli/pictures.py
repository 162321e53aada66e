"""`suffuse sample`, `reproduce`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from suffuse.cli.processes import together
from suffuse.cli.say import say

__all__ = ["Reproduce", "Sample"]


@dataclass(frozen=True)
class Sample:
    """Sample from a trained run into a picture that carries its recipe."""

    run: Positional[Path]
    """a run's folder, or the name of a model that ships: shapes"""
    label: Annotated[tuple[int, ...], arg(metavar="INT...")] = ()
    """class of the samples; several are repeated in turn; none is unconditional"""
    prompt: Annotated[tuple[str, ...], arg(metavar="TEXT...")] = ()
    """what the samples show, of a model that is told text; several are repeated in turn"""
    any_words: bool = False
    """leave out words that the model does not know, instead of stopping at them"""
    n: int = 64
    """how many"""
    w: float | None = None
    """guidance scale; 1 is off, and the default but for models whose recipe names another"""
    between: tuple[float, float] | None = None
    """times where guidance acts, 0 is data and 1 is noise; all, but for models whose recipe names others"""
    sampler: str | None = None
    """one of `suffuse samplers`; by default the recipe's own, else the best known for the budget"""
    order: int | None = None
    """of the sampler, where it has one"""
    eta: float | None = None
    """of ddim: 0 deterministic, 1 ddpm"""
    steps: int = 20
    """grid intervals"""
    grid: Literal["uniform", "logsnr", "karras"] | None = None
    """spacing of the times"""
    seed: int = 0
    """of the noise"""
    control: Annotated[tuple[Path, ...], arg(metavar="RUN...")] = ()
    """runs of controls that were trained beside this one, or the names of those that ship"""
    hint: Annotated[tuple[Path, ...], arg(metavar="PICTURE...")] = ()
    """what each control is told: for edges any picture, for others what it takes, as a stick figure"""
    strength: Annotated[tuple[float, ...], arg(metavar="FLOAT...")] = ()
    """of each control, or of all; 1 is as trained, 0 is off"""
    acting: tuple[float, float] = (0.0, 1.0)
    """times where the controls act"""
    drawn: bool = False
    """the hints show edges already, white on black"""
    out: Path = Path("samples.png")
    """picture to write; its recipe goes inside and into a .png.json beside it"""
    processes: int = 1
    """how many on this machine share the samples, and its cores"""

    def __call__(self) -> None:
        """Sample."""
        together(self.processes, self._draw)

    def _draw(self) -> None:
        from suffuse.recipes.draw import draw, recipe_of

        options = {k: v for k, v in vars(self).items() if k not in ("run", "out", "processes")}
        recipe = recipe_of(self.run, **options)
        draw(recipe, self.out)
        say(f"{self.out}: {self.n} samples, recipe inside and in {self.out.name}.json")


@dataclass(frozen=True)
class Reproduce:
    """Make a picture again from the recipe inside it, and compare the bytes."""

    picture: Positional[Path]
    run: Path | None = None
    """the run's folder, if it has moved"""
    out: Path | None = None
    """where the new picture goes; by default NAME.again.png beside the old one"""

    def __call__(self) -> None:
        """Sample again."""
        from suffuse.pictures import read_recipe
        from suffuse.recipes.draw import draw

        recipe = read_recipe(self.picture)
        if "run" not in recipe:
            raise ValueError(
                f"{self.picture} was made by {recipe.get('made by', 'another command')}, not by `suffuse sample`"
            )
        out = self.out or self.picture.with_suffix(".again.png")
        if out.resolve() == self.picture.resolve():
            raise ValueError(f"--out is the picture itself, {out}: choose another name")
        draw(recipe, out, run=self.run)
        if out.read_bytes() != self.picture.read_bytes():
            raise ValueError(
                f"{out} differs from {self.picture}: made with suffuse {recipe['suffuse']} and torch "
                f"{recipe['torch']}, on another machine or another number of threads?"
            )
        say(f"{out}: the same bytes")
