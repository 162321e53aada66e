"""`suffuse train RECIPE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import subcommand

from suffuse.cli.say import say

__all__ = ["Train"]


@dataclass(frozen=True)
class _Digits:
    """Real handwritten digits, 8 x 8, told their label: two minutes."""

    out: Path = Path("runs/digits")
    """folder for checkpoints, log and model"""
    seed: int = 0
    """of weights, data order and noise"""
    steps: int | None = None
    """how many; by default the recipe's own"""
    batch_size: int | None = None
    """samples a step"""
    lr: float | None = None
    """peak learning rate"""
    dropout: float | None = None
    """how often the label is withheld; 0 makes a model that cannot be guided"""
    resume: bool = False
    """go on from the newest checkpoint in `out`"""
    overwrite: bool = False
    """begin anew where `out` already holds checkpoints"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import digits

        _done(digits.train(**_chosen(self)))


@dataclass(frozen=True)
class _Shapes:
    """Captioned scenes, 32 x 32, told in words: hours on two cores, and resumable."""

    out: Path = Path("runs/shapes")
    """folder for checkpoints, log and model"""
    net: Literal["dit", "unet"] = "dit"
    """network"""
    seed: int = 0
    """of weights, scenes and noise"""
    steps: int | None = None
    """how many; by default the recipe's own"""
    batch_size: int | None = None
    """samples a step"""
    lr: float | None = None
    """peak learning rate"""
    dropout: float | None = None
    """how often the caption is withheld"""
    watch_every: int | None = None
    """steps between looks at binding and captions met"""
    compile: bool = False
    """through torch.compile"""
    resume: bool = False
    """go on from the newest checkpoint in `out`"""
    overwrite: bool = False
    """begin anew where `out` already holds checkpoints"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import shapes

        _done(shapes.train(**_chosen(self)))


@dataclass(frozen=True)
class Train:
    """Train a recipe."""

    recipe: Annotated[_Digits, subcommand("digits")] | Annotated[_Shapes, subcommand("shapes")]

    def __call__(self) -> None:
        """Train."""
        self.recipe()


def _chosen(options: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(options).items() if v is not None}


def _done(run: Any) -> None:
    say(f"trained in {run.train_seconds:.0f} s: {run.path / 'model'}")
    say(f"next: suffuse evaluate {run.path}; suffuse sample {run.path} --out samples.png")
