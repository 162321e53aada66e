"""`suffuse distil`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from suffuse.cli.say import say, summary

__all__ = ["Distil"]

Name = Literal[
    "reflow",
    "progressive",
    "consistency-distillation",
    "consistency-training",
    "latent-consistency",
    "scm",
    "shortcut",
    "meanflow",
    "dmd",
    "dmd2",
]


@dataclass(frozen=True)
class Distil:
    """Make a trained run into one that samples in one to four evaluations."""

    run: Positional[Path]
    """the teacher: a run's folder, or the name of a model that ships"""
    method: Name = "meanflow"
    """how"""
    nfe: int = 1
    """evaluations a sample that the student is for"""
    out: Path | None = None
    """folder for the student; by default runs/NAME-METHOD"""
    w: float = 1.0
    """guidance of the teacher that is folded into the student; 1 is off"""
    seed: int = 0
    """of data order and noise"""
    steps: int | None = None
    """how many; by default the recipe's own"""
    batch_size: int | None = None
    """samples a step"""
    lr: float | None = None
    """peak learning rate"""
    resume: bool = False
    """go on from what is in `out`"""
    overwrite: bool = False
    """begin anew where `out` already holds something"""

    def __call__(self) -> None:
        """Distil, measure where that is known, and say what it costs."""
        from suffuse.recipes import distil

        out = self.out or Path("runs") / f"{self.run.name}-{self.method}"
        chosen = {k: v for k, v in vars(self).items() if v is not None and k not in ("run", "out")}
        made = distil.train(self.run, out, **chosen)
        spent = distil.cost(made)
        say(
            f"trained in {spent['train_seconds']:.0f} s: {made.path / 'model'}, {spent['parameters']:,} parameters "
            f"({spent['kept']:,} in its newest checkpoint, averages and second models included)"
        )
        rule = "consistency" if distil.METHODS[self.method].jumps else "ddim"
        if made.settings["of"] != "digits":
            say(f"next: suffuse sample {out} --sampler {rule} --steps {self.nfe} --grid uniform")
            return
        result = distil.evaluate(made, nfe=(self.nfe,))
        found = result[str(self.nfe)]
        summary(f"{found['nfe']:g} evaluations a sample, counted", {k: v for k, v in found.items() if k != "nfe"})
        say(f"\nnext: suffuse sample {out} --sampler {rule} --steps {self.nfe} --grid uniform --label 3")
