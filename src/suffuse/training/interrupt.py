"""Stopping on SIGTERM or Ctrl-C: the step is finished and kept, and the process ends with exit code 0."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Asked", "Stopped", "interruptible"]


class Stopped(SystemExit):
    """`fit` was asked to stop and did, after a whole step and with a checkpoint.

    A `SystemExit` with code 0: a script that does nothing about it ends well. Catch it to do more.

    Attributes:
        step, steps: how many were done, and how many there were to do. out: the run's folder.
    """

    def __init__(self, by: str, step: int, steps: int, out: Path) -> None:
        super().__init__(0)
        self.by, self.step, self.steps, self.out = by, step, steps, out

    def __str__(self) -> str:
        return (
            f"stopped by {self.by} after step {self.step} of {self.steps}; the checkpoint is in {self.out}: "
            "run the same again with resume=True (--resume) to go on"
        )


@dataclass
class Asked:
    """Which signal asked to stop, None as long as none did."""

    by: str | None = None


@contextmanager
def interruptible(on: bool) -> Iterator[Asked]:
    """While inside, the first SIGTERM or SIGINT is noted; a second one acts as it would have.

    Signals that the process was told to ignore stay ignored. Only the main thread can be asked.

    Args:
        on: False changes nothing.
    """
    asked, before = Asked(), {}

    def note(number: int, frame: Any) -> None:
        asked.by = signal.Signals(number).name
        back()

    def back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if on and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield asked
    finally:
        back()
