"""`suffuse train RECIPE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import subcommand

from suffuse.cli.processes import together
from suffuse.cli.say import say

__all__ = ["Train"]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What every recipe is told."""

    seed: int = 0
    """of weights, data and noise"""
    steps: int | None = None
    """how many; by default the recipe's own"""
    batch_size: int | None = None
    """samples a step; by default the recipe's own"""
    lr: float | None = None
    """peak learning rate"""
    resume: bool = False
    """go on from the newest checkpoint in `out`"""
    overwrite: bool = False
    """begin anew where `out` already holds checkpoints"""


@dataclass(frozen=True)
class _Digits(_Training):
    """Real handwritten digits, 8 x 8, told their label: two minutes."""

    out: Path = Path("runs/digits")
    """folder for checkpoints, log and model"""
    dropout: float | None = None
    """how often the label is withheld; 0 makes a model that cannot be guided"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import digits

        _done(digits.train(**_chosen(self)))


@dataclass(frozen=True)
class _Shapes(_Training):
    """Captioned scenes, 32 x 32, told in words: hours on two cores, and resumable."""

    out: Path = Path("runs/shapes")
    """folder for checkpoints, log and model"""
    net: Literal["dit", "unet"] = "dit"
    """network"""
    dropout: float | None = None
    """how often the caption is withheld"""
    watch_every: int | None = None
    """steps between looks at binding and captions met"""
    compile: bool = False
    """through torch.compile"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import shapes

        _done(shapes.train(**_chosen(self)))


@dataclass(frozen=True)
class _Toy(_Training):
    """Points in the plane: a minute."""

    out: Path | None = None
    """folder for checkpoints, log and model; by default runs/DATA"""
    data: Literal["swiss-roll", "moons", "checkerboard", "gaussians", "pinwheel"] = "swiss-roll"
    """which points"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import toy

        options: dict[str, Any] = {"out": Path("runs") / self.data} | _chosen(self)
        _done(toy.train(**options), "suffuse evaluate {run}")


@dataclass(frozen=True, kw_only=True)
class _Images(_Training):
    """Your own pictures: a folder, with classes or captions if it has them; defaults by how many and how large."""

    data: str
    """a folder of pictures, a .npz file, or one of mnist, fashion-mnist, cifar10, emoji (of SUFFUSE_DATA)"""
    size: int | None = None
    """side in pixels, a multiple of 4; by default 64 for a folder, and its own for other data"""
    out: Path = Path("runs/images")
    """folder for checkpoints, log and model"""
    steps: int | None = None
    """how many; by default by the size of the set"""
    batch_size: int | None = None
    """pictures a step; by default by their size"""
    width: int | None = None
    """channels of the network's finest level; by default by the size of the set"""
    dropout: float | None = None
    """how often the caption or class is withheld"""
    flip: bool = False
    """also train on pictures mirrored left to right; not for letters"""
    cache: Path | None = None
    """folder that keeps the decoded pictures, for sets larger than memory"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import images

        _done(images.train(**_chosen(self), tell=say))


@dataclass(frozen=True)
class _Frieze(_Training):
    """Crops of friezes, 32 x 32, told their ground: for panoramas and textures; resumable."""

    out: Path = Path("runs/frieze")
    """folder for checkpoints, log and model"""
    dropout: float | None = None
    """how often the caption is withheld"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import frieze

        _done(
            frieze.train(**_chosen(self)),
            'suffuse panorama {run} --prompt "shapes on a striped blue background" --out panorama.png\n'
            '      suffuse texture cube --run {run} --prompt "a dotted yellow background"',
        )


@dataclass(frozen=True)
class _Control(_Training):
    """A control beside a model of the shapes world, which stays as it is: told edges, stick figures, depth ..."""

    base: Path = Path("shapes")
    """the model: a run's folder, or the name of one that ships"""
    kind: Literal["edges", "soft_edges", "scribble", "pose", "depth", "masks"] = "edges"
    """what it is told"""
    method: Literal["controlnet", "t2i", "concatenated"] = "controlnet"
    """what is trained"""
    out: Path | None = None
    """folder for checkpoints, log and the control; by default runs/BASE-KIND"""
    silent: float | None = None
    """how often the caption is withheld"""
    watch_every: int | None = None
    """steps between looks at obedience"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import control

        out = self.out or Path("runs") / f"{self.base.name}-{self.kind}"
        options: dict[str, Any] = _chosen(self) | {"out": out}
        made = control.train(**options)
        say(f"trained in {made.train_seconds:.0f} s: {made.path / 'control'}")
        say(f'next: suffuse sample {self.base} --control {made.path} --hint PICTURE --prompt "two blue stars"')


Recipe = (
    Annotated[_Digits, subcommand("digits")]
    | Annotated[_Shapes, subcommand("shapes")]
    | Annotated[_Toy, subcommand("toy")]
    | Annotated[_Images, subcommand("images")]
    | Annotated[_Frieze, subcommand("frieze")]
    | Annotated[_Control, subcommand("control")]
)


@dataclass(frozen=True)
class Train:
    """Train a recipe; under torchrun, on many machines."""

    recipe: Recipe
    processes: int = 1
    """how many on this machine share every batch, and its cores"""

    def __call__(self) -> None:
        """Train."""
        together(self.processes, self.recipe)


def _chosen(options: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(options).items() if v is not None}


def _done(run: Any, after: str = "suffuse evaluate {run}; suffuse sample {run} --out samples.png") -> None:
    say(f"trained in {run.train_seconds:.0f} s: {run.path / 'model'}")
    say(f"next: {after.format(run=run.path)}")
