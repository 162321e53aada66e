"""`suffuse doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from suffuse.cli.say import say

__all__ = ["Doctor"]


@dataclass(frozen=True)
class Doctor:
    """Say what a run's own files tell against its training, and what to do about it."""

    run: Positional[Path]
    """a run's folder, finished or not"""

    def __call__(self) -> None:
        """Print one line for each finding."""
        from suffuse.training.doctor import examine

        found = examine(self.run)
        for sentence in found:
            say(f"- {sentence}")
        if not found:
            say(f"{self.run}: nothing to say against it")
