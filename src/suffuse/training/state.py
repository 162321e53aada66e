"""Checkpoints of a training run, and its log.

`out/checkpoints/step-00000120/` is written under another name and renamed, so a folder of that name is whole; the
newest two are kept.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from suffuse.training.checkpoint import fill
from suffuse.training.ema import EMA
from suffuse.training.files import (
    ModelFileError,
    discard,
    read_json,
    read_tensors,
    whole_folder,
    write_json,
    write_tensors,
    write_text,
)
from suffuse.training.optimizer import Optimizer

__all__ = ["Keeper"]


class Keeper:
    """Keeps what a run needs to go on: weights, their average, the optimiser, and how far it was.

    Args:
        out: the run's folder.
        settings: what must be the same for a resumed run to be the same run.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.settings = out, settings
        self.folder, self.lines = out / "checkpoints", out / "metrics.jsonl"

    def all(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []

    def clear(self, overwrite: bool) -> None:
        """Begin anew in this folder.

        Raises:
            ValueError: there are checkpoints of an earlier run, and not `overwrite`.
        """
        if self.all() and not overwrite:
            raise ValueError(f"{self.out} holds checkpoints up to {self.all()[-1].name}: resume, or overwrite them")
        for old in self.all():
            discard(old)
        self.lines.unlink(missing_ok=True)

    def write(self, net: nn.Module, average: EMA | None, optimizer: Optimizer, step: int, seconds: float) -> None:
        """Write a checkpoint after `step` steps."""
        with whole_folder(self.folder / f"step-{step:08d}") as work:
            write_tensors(work / "model.safetensors", net.state_dict())
            if average is not None:
                write_tensors(work / "ema.safetensors", average.net.state_dict())
            write_tensors(work / "optimizer.safetensors", optimizer.tensors())
            write_json(work / "state.json", {"step": step, "seconds": seconds, "settings": self.settings})
        for old in self.all()[:-2]:
            discard(old)

    def restore(self, net: nn.Module, average: EMA | None, optimizer: Optimizer) -> tuple[int, float]:
        """Fill everything from the newest checkpoint; (0, 0.0) when there is none.

        Raises:
            ValueError: the run was started with other settings.
            ModelFileError: there are checkpoints, and all are damaged.
        """
        for part in self.folder.glob(".step-*.part"):  # what a kill left half written
            shutil.rmtree(part, ignore_errors=True)
        for newest in reversed(self.all()):
            try:
                return self._read(newest, net, average, optimizer)
            except ModelFileError as error:
                warnings.warn(f"{newest} is damaged ({error}); going on from the one before", stacklevel=3)
        if self.all():
            raise ModelFileError(f"no checkpoint in {self.folder} can be read")
        self.clear(overwrite=True)
        return 0, 0.0

    def _read(self, newest: Path, net: nn.Module, average: EMA | None, optimizer: Optimizer) -> tuple[int, float]:
        about = read_json(newest / "state.json")
        other = [
            f"{k} was {about['settings'].get(k)!r}, now {v!r}"
            for k, v in self.settings.items()
            if about["settings"].get(k) != v
        ]
        if other:
            raise ValueError(f"cannot resume {self.out} with other settings: {'; '.join(other)}")
        tensors = {name: read_tensors(newest / f"{name}.safetensors") for name in ("model", "optimizer")}
        averaged = None if average is None else read_tensors(newest / "ema.safetensors")
        fill(net, tensors["model"], newest / "model.safetensors")
        if average is not None and averaged is not None:
            fill(average.net, averaged, newest / "ema.safetensors")
        optimizer.fill(tensors["optimizer"])
        step = about["step"]
        if self.lines.exists():
            whole = [line for line in self.lines.read_text().splitlines() if line.endswith("}")]
            write_text(self.lines, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))
        return step, about["seconds"]

    def log(self, entry: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.out.mkdir(parents=True, exist_ok=True)
        with self.lines.open("a") as file:
            file.write(json.dumps(entry) + "\n")
