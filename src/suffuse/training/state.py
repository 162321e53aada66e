"""Checkpoints of a training run, and its log.

`out/checkpoints/step-00000120/` is written under another name and renamed, so a folder of that name is whole; the
newest two are kept. Of several processes the first writes; where weights are sharded, each writes its own part. Any
number of processes reads either, from one file system.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.training.described import fill
from suffuse.training.ema import EMA
from suffuse.training.files import (
    ModelFileError,
    discard,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from suffuse.training.optimizer import Optimizer
from suffuse.training.parallel import Peers
from suffuse.training.power_ema import Averages
from suffuse.training.sharded import read_shards, shapes_of, sharded, write_shards

__all__ = ["DiskFullError", "Keeper", "State"]


class DiskFullError(OSError):
    """There was no room for a checkpoint or a line of the log; what was there before is whole."""


@dataclass
class State:
    """All that changes while a model trains.

    Attributes:
        net: what is trained. average: of its weights. optimizer: what takes the steps.
        loss: with parameters of its own, or None. scaler: of fp16, or None. data: where batches come from.
    """

    net: nn.Module
    average: EMA | Averages | None
    optimizer: Optimizer
    loss: nn.Module | None
    scaler: torch.amp.GradScaler | None
    data: Any

    def modules(self) -> dict[str, nn.Module]:
        """Every module with weights, by the name of its file."""
        averages = {} if self.average is None else self.average.nets
        own = {} if self.loss is None else {"loss": self.loss}
        return {"model": self.net} | averages | own


class Keeper:
    """Keeps what a run needs to go on: weights, their average, the optimiser, and how far it was.

    Args:
        out: the run's folder.
        settings: what must be the same for a resumed run to be the same run.
        tensorboard: whether numbers also go to out/tensorboard.
        team: the processes that train together; all of them call every method.
    """

    def __init__(
        self, out: Path, settings: dict[str, Any], tensorboard: bool = False, team: Peers | None = None
    ) -> None:
        self.out, self.settings, self.tensorboard = out, settings, tensorboard
        self.team = team or Peers()
        self.folder, self.lines = out / "checkpoints", out / "metrics.jsonl"
        self._board: Any = None

    def all(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def clear(self, overwrite: bool) -> None:
        """Begin anew in this folder.

        Raises:
            ValueError: there are checkpoints of an earlier run, and not `overwrite`.
        """
        there = self.team.word([old.name for old in self.all()])
        if there and not overwrite:
            raise ValueError(f"{self.out} holds checkpoints up to {there[-1]}: resume, or overwrite them")
        if not self.team.first:
            return
        for old in self.all():
            discard(old)
        self.lines.unlink(missing_ok=True)
        for folder in ("tensorboard", "averages"):
            shutil.rmtree(self.out / folder, ignore_errors=True)

    def write(self, state: State, step: int, seconds: float) -> None:
        """Write a checkpoint after `step` steps.

        Raises:
            DiskFullError: there is no room for it.
        """
        about: dict[str, Any] = {"step": step, "seconds": seconds, "settings": self.settings}
        about["position"] = self.team.each(state.data.position)[-1]  # the last one's samples end the batch
        if state.scaler is not None:
            about["scaler"] = state.scaler.state_dict()
        with self.room(f"checkpoint step-{step:08d}"), self.team.folder(self.folder / f"step-{step:08d}") as work:
            for name, module in state.modules().items():
                self._put(work / name, module.state_dict())
            self._put(work / "optimizer", state.optimizer.tensors())
            if self.team.first:
                write_json(work / "state.json", about)
        if self.team.first:
            for old in self.all()[:-2]:
                discard(old)

    def _put(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if any(sharded(value) for value in tensors.values()):
            write_shards(path, tensors)
        elif self.team.first:
            write_tensors(path.parent / f"{path.name}.safetensors", tensors)

    def restore(self, state: State) -> tuple[int, float]:
        """Fill everything from the newest checkpoint; (0, 0.0) when there is none.

        Raises:
            ValueError: the run was started with other settings.
            ModelFileError: there are checkpoints, and all are damaged.
        """
        if self.team.first:
            for part in self.folder.glob(".step-*.part"):  # what a kill left half written
                shutil.rmtree(part, ignore_errors=True)
        self.team.word(None)
        for newest in reversed(self.all()):
            try:
                return self._read(newest, state)
            except ModelFileError as error:
                warnings.warn(f"{newest} is damaged ({error}); going on from the one before", stacklevel=3)
        if self.all():
            raise ModelFileError(f"no checkpoint in {self.folder} can be read")
        self.clear(overwrite=True)
        return 0, 0.0

    def _read(self, newest: Path, state: State) -> tuple[int, float]:
        about = read_json(newest / "state.json")
        other = [
            f"{k} was {about['settings'].get(k)!r}, now {self.settings.get(k)!r}"
            for k in {**self.settings, **about["settings"]}
            if about["settings"].get(k) != self.settings.get(k)
        ]
        if other:
            raise ValueError(f"cannot resume {self.out} with other settings: {'; '.join(other)}")
        modules = state.modules()
        spread = [name for name in (*modules, "optimizer") if (newest / name).is_dir()]
        tensors = {
            name: read_tensors(newest / f"{name}.safetensors") for name in (*modules, "optimizer") if name not in spread
        }
        for name in spread:
            own = modules[name].state_dict() if name in modules else state.optimizer.empty(shapes_of(newest / name))
            read_shards(newest / name, own)
            tensors[name] = own
        for name, module in modules.items():
            if name not in spread:
                fill(module, tensors[name], newest / f"{name}.safetensors")
        state.optimizer.fill(tensors["optimizer"])
        if state.scaler is not None:
            state.scaler.load_state_dict(about["scaler"])
        step = about["step"]
        state.data.seek(about.get("position", {"sample": step * self.settings["batch_size"]}))
        if self.team.first and self.lines.exists():
            whole = [line for line in self.lines.read_text().splitlines() if line.endswith("}")]
            write_text(self.lines, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))
        return step, about["seconds"]

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl, and its numbers to TensorBoard."""
        if not self.team.first:
            return
        with self.room("metrics.jsonl"):
            self.out.mkdir(parents=True, exist_ok=True)
            with self.lines.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        if self.tensorboard:
            if self._board is None:
                self._board = board(self.out / "tensorboard", entry["step"])
            for name, value in entry.items():
                if name not in ("step", "samples"):
                    self._board.add_scalar(name, value, entry["step"])
            self._board.flush()

    def close(self) -> None:
        """Nothing more will be logged."""
        if self._board is not None:
            self._board.close()

    @contextmanager
    def room(self, what: str) -> Iterator[None]:
        """Say it plainly when the disk is full."""
        try:
            yield
        except Exception as error:
            if not _full(error):
                raise
            kept = f"{self.all()[-1].name} is whole" if self.all() else "there is no earlier one"
            free = shutil.disk_usage(self.out if self.out.exists() else Path.cwd()).free
            raise DiskFullError(
                errno.ENOSPC,
                f"the disk is full ({free / 1e6:.1f} MB free): no room for {what} in {self.out}; of the checkpoints, "
                f"{kept}: make room and resume",
            ) from error


def _full(error: Exception) -> bool:
    """Whether an error, of Python or of safetensors, means that there is no room."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return type(error).__name__ == "SafetensorError" and os.strerror(errno.ENOSPC) in str(error)


def board(folder: Path, step: int) -> Any:
    """A TensorBoard writer; of an earlier run's numbers, those from `step` on are hidden.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError("tensorboard=True needs tensorboard: pip install 'suffuse[train]'") from None
    return SummaryWriter(str(folder), purge_step=step)
