"""`suffuse edit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from suffuse.cli.say import say

__all__ = ["Edit"]


@dataclass(frozen=True)
class Edit:
    """Change what a picture shows by score distillation, and keep the rest."""

    image: Positional[Path]
    """any picture; its middle square is scaled to the model's size"""
    source: str
    """what it shows: a text, or a class by its number, as the model takes"""
    target: str
    """what it shall show"""
    run: Path = Path("shapes")
    """a run's folder, or the name of a model that ships"""
    method: Literal["pds", "dds", "sds"] = "pds"
    """pds and dds look at source and target together; sds at the target only"""
    w: float = 7.5
    """guidance scale; 1 is off"""
    steps: int = 200
    """of the optimisation, each two or four evaluations"""
    lr: float = 0.05
    """of the optimisation, in units of what the model denoises: a picture from -1 to 1, or its latents"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("edited.png")
    """picture to write; its recipe goes inside and into a .png.json beside it"""

    def __call__(self) -> None:
        """Edit."""
        from suffuse.recipes.edit import edit

        edit(
            self.run, self.image, self.out, **{k: v for k, v in vars(self).items() if k not in ("run", "image", "out")}
        )
        say(f"{self.out}: {self.image} from {self.source!r} to {self.target!r} by {self.method}")
