"""Progress of long work: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Shows what is done of a total, with a note and the time left.

    Args:
        what: one word for the work.
        total: how many units there are. done: how many were done before.
        show: False keeps it silent.
        every: seconds between plain lines.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, show: bool = True, every: float = 10.0) -> None:
        self.what, self.total, self.first, self.show, self.every = what, total, done, show, every
        self.start = self.last = time.monotonic()
        self.bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar:
            self.bar.stop()

    def due(self) -> bool:
        """Whether it is time to say something, so that a note is made only then."""
        return self.show and time.monotonic() - self.last >= (0.2 if self.bar else self.every)

    def update(self, done: int, note: str) -> None:
        """Say that `done` units are done."""
        self.last = now = time.monotonic()
        if not self.show:
            return
        if self.bar:
            self.bar.update(self.task, completed=done, note=note)
            return
        left = (now - self.start) / max(done - self.first, 1) * (self.total - done)
        print(f"{self.what} {done}/{self.total}  {note}  {left:.0f} s left", file=sys.stderr, flush=True)
