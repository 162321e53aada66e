"""Several processes on one machine, without torchrun: started together, watched, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["GRACE", "launch", "launched"]

GRACE = 15.0
"""Seconds that the others have to say what happened and end, once one process has failed."""


def launched() -> bool:
    """Whether this process is one of several that torchrun or `launch` started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(n: int, command: list[str]) -> int:
    """Run a command in n processes, as torchrun would, until all end or one fails; the exit code.

    The first process speaks; of the others only the last line is told, where the first could not say what happened.

    Args:
        n: processes; each gets an equal share of the cores. command: what each runs.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // n)))}
    with tempfile.TemporaryDirectory(prefix="suffuse-") as folder:
        said = [Path(folder) / str(i) for i in range(n)]
        children = []
        for i in range(n):
            own = os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i)}
            with said[i].open("w") as file:
                children.append(subprocess.Popen(command, env=own, stderr=None if i == 0 else file))
        before = {
            number: signal.signal(number, _pass_on(children, number)) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            codes = _watch(children)
        finally:
            for child in children:
                child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        return _tell(codes, [file.read_text().strip() for file in said])


def _pass_on(children: list[subprocess.Popen[bytes]], number: int) -> Any:
    def handle(_number: int, _frame: Any) -> None:
        if number == signal.SIGTERM:  # Ctrl-C reaches the children by itself
            for child in children:
                child.send_signal(number)

    return handle


def _watch(children: list[subprocess.Popen[bytes]]) -> list[int | None]:
    """The exit codes, None for a process that had to be killed because it did not end with the others."""
    failed: float | None = None
    while True:
        codes = [child.poll() for child in children]
        if None not in codes:
            return codes
        if any(codes) and failed is None:
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > GRACE:
            return codes
        time.sleep(0.05)


def _tell(codes: list[int | None], said: list[str]) -> int:
    if not any(code != 0 for code in codes):
        return 0
    first = codes[0]
    if first is None or first < 0 or first == 0:  # it could not say what happened
        for i, text in enumerate(said):
            if text and codes[i]:
                print(text.splitlines()[-1], file=sys.stderr)
                break
        else:
            lost = next((i for i, code in enumerate(codes) if code is None or code < 0), 0)
            code = codes[lost]
            how = "did not answer" if code is None else f"was ended by {signal.Signals(-code).name}" if code < 0 else ""
            print(f"suffuse: process {lost} of {len(codes)} {how}: run the same again with --resume", file=sys.stderr)
    return next((code for code in codes if code and code > 0), 1)
