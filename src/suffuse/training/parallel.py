"""Several processes that train one model: which one this is, and what they tell each other.

torch.distributed itself, as torchrun starts it. Process i of n takes rows i, i + n, i + 2n, ... of every batch. With
one process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from suffuse.training.files import whole_folder

__all__ = ["PeerLostError", "Peers", "alone", "gathered", "joined", "peers"]

PATIENCE = 45.0
"""Seconds that a process waits for the others in one exchange before it takes them for lost."""


class PeerLostError(RuntimeError):
    """Another process is gone, or has not answered for longer than the patience."""


@dataclass(frozen=True)
class Peers:
    """The processes that train together.

    Attributes:
        index: of this one, from 0. count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.index == 0

    def sums(self, *values: float | Tensor, device: Any = None) -> list[float]:
        """The sum over all processes of each number."""
        if self.count == 1:
            return [float(value) for value in values]
        one = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
        dist.all_reduce(one)
        return one.tolist()

    def word(self, value: Any) -> Any:
        """What the first process says."""
        if self.count == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def each(self, value: Any) -> list[Any]:
        """What every process says, in order."""
        if self.count == 1:
            return [value]
        said: list[Any] = [None] * self.count
        dist.all_gather_object(said, value)
        return said

    def agree(self, error: BaseException | None) -> None:
        """Go on together, or raise in all of them: its own error where there is one."""
        said = self.each(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for i, what in enumerate(said):
            if what is not None:
                raise RuntimeError(f"process {i} of {self.count} failed: {what}")

    def same(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.count > 1:
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value.detach(), src=0)

    @contextmanager
    def folder(self, path: Path) -> Iterator[Path]:
        """`whole_folder` for all of them: one temporary folder, renamed once everybody has written.

        Raises:
            RuntimeError: another process could not write; whoever could not raises its own error.
        """
        if self.count == 1:
            with whole_folder(path) as work:
                yield work
            return
        made, work, error = whole_folder(path), None, None
        try:
            work = made.__enter__() if self.first else None
        except OSError as failed:
            error = failed
        name = self.word(None if work is None else str(work))
        try:
            if name is not None:
                yield Path(name)
        except Exception as failed:
            error = failed
        try:
            self.agree(error)
        except Exception as failed:
            if work is not None:
                made.__exit__(type(failed), failed, failed.__traceback__)
            raise
        try:
            if self.first:
                made.__exit__(None, None, None)
        except OSError as failed:
            error = failed
        self.agree(error)

    @contextmanager
    def listening(self, doing: Callable[[], str]) -> Iterator[None]:
        """Say it in one sentence when another process is lost.

        Args:
            doing: how far this process is, and how to go on.
        Raises:
            PeerLostError: a process is gone, or did not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _lost(error):
                raise
            why = "did not answer in time" if "imed out" in str(error) else "is gone"
            others = "the other process" if self.count == 2 else f"one of the other {self.count - 1} processes"
            raise PeerLostError(f"process {self.index} of {self.count}: {others} {why} {doing()}") from error


ALONE = Peers()


def _lost(error: RuntimeError) -> bool:
    """Whether an error came from the exchange between processes: gloo raises bare RuntimeErrors."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "NCCL", "Connection closed"))


def peers() -> Peers:
    """The processes that torch.distributed knows of: one, where it was not started."""
    if not (dist.is_available() and dist.is_initialized()):
        return Peers()
    return Peers(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(patience: float | None = None) -> Iterator[Peers]:
    """Join the processes that torchrun or `suffuse train --processes` started; nothing where there is only this one.

    Args:
        patience: seconds that an exchange may take before the others count as lost, by default 45 or the environment's
            SUFFUSE_PATIENCE. Not less than what the processes' work between two exchanges may differ by.
    Raises:
        PeerLostError: not all processes came, or one was lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield peers()
        return
    from torch.distributed.rendezvous import rendezvous

    wait = timedelta(seconds=float(os.environ.get("SUFFUSE_PATIENCE", PATIENCE)) if patience is None else patience)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    index, count = os.environ.get("RANK", "?"), os.environ["WORLD_SIZE"]
    meeting = wait if index == "0" else wait * 2 / 3  # who finds nobody there tries again, for up to as long
    try:
        store, rank, size = next(rendezvous("env://", timeout=meeting))
        how = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(how, store=store, rank=rank, world_size=size, timeout=wait)
    except RuntimeError as error:
        raise PeerLostError(
            f"process {index} of {count}: not all of the {count} processes met within {wait.total_seconds():.0f} s"
        ) from error
    team = peers()
    with team.listening(lambda: "while they shared work: run the same again, a training with resume=True (--resume)"):
        yield team
    if dist.is_initialized():
        dist.destroy_process_group()  # after an error the others may be gone, and this would wait for them


def alone() -> None:
    """Go on with one process, where only the first has more to do; the others end well.

    Raises:
        SystemExit: with code 0, in all but the first.
    """
    team = peers()
    if team.count > 1:
        dist.destroy_process_group()
        if not team.first:
            raise SystemExit(0)


def gathered(n: int, some: Callable[[int, int], Tensor]) -> Tensor:
    """n rows, made by all processes together: each makes a contiguous part, and gets the whole.

    x = gathered(n, lambda first, k: sample(model.rows(slice(first, first + k)), noise((k, ...), seed, first=first),
                                            seed=seed, first=first))

    are the samples of one process, since item i depends on (seed, i) only. The processes wait for each other at the
    end, no longer than the patience of `joined`: many rows are better gathered a batch at a time.

    Args:
        n: rows in all, at least 1. some: (first, k) -> rows first to first + k - 1, (k, ...). Where there are fewer
            rows than processes, some make a row that is not kept, so that all call it.
    Returns:
        (n, ...).
    """
    team = peers()
    if team.count == 1:
        return some(0, n)
    ends = [n * i // team.count for i in range(team.count + 1)]
    counts = [b - a for a, b in pairwise(ends)]
    first, most = min(ends[team.index], n - 1), max(counts)
    mine = some(first, max(counts[team.index], 1)).detach()
    padded = torch.cat([mine, mine.new_zeros((most - len(mine), *mine.shape[1:]))])
    every = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(every, padded)
    return torch.cat([rows[:k] for rows, k in zip(every, counts, strict=True)])
