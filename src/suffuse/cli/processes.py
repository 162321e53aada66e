"""What `--processes` does: a command run by several processes that share its work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from io import StringIO

__all__ = ["together"]


def together(processes: int, work: Callable[[], None]) -> None:
    """Do the work in so many processes of this machine, or in those that torchrun started; the first one speaks.

    Raises:
        ValueError: processes < 1.
    """
    from suffuse.training.launch import launch, launched
    from suffuse.training.parallel import PeerLostError, joined

    if processes < 1:
        raise ValueError(f"--processes must be at least 1, got {processes}")
    if processes > 1 and not launched():
        sys.exit(launch(processes, [sys.executable, "-m", "suffuse", *sys.argv[1:]]))
    try:
        with joined() as team, nullcontext() if team.first else redirect_stdout(StringIO()):
            work()
    except PeerLostError as error:
        print(f"suffuse: {error}", file=sys.stderr, flush=True)
        os._exit(75)  # a clean end would wait for the others
