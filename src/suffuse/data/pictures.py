"""Pictures decoded once: a set of squares of uint8 in memory, or in a cache on disk, checked before training begins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suffuse.data.decode import Findings, picture

__all__ = ["Pictures", "Record", "decoded"]

_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class Record:
    """A picture before it is decoded: its name, how to read the file, its class and its caption."""

    name: str
    read: Callable[[], bytes]
    label: int | None = None
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Pictures:
    """A set of pictures of one size.

    `data[rows]` is {"x": (B, C, S, S) float32 in [-1, 1], "label": (B,) where there are classes, ...}.

    Attributes:
        pixels: (N, C, S, S) uint8. names: of the files. classes: names of the labels. captions: "" where there is none.
        findings: what was left out, and what was odd. conditions: what `given` added.
    """

    pixels: Tensor
    names: tuple[str, ...]
    label: Tensor | None = None
    classes: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    findings: Findings = field(default_factory=Findings)
    conditions: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        batch = {"x": self.pixels[rows].float() / 127.5 - 1}
        if self.label is not None:
            batch["label"] = self.label[rows]
        return batch | {name: value[rows] for name, value in self.conditions.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The whole set at once, four times the memory of `pixels`."""
        return self[torch.arange(len(self))]

    def given(self, **conditions: Tensor) -> Pictures:
        """The same set with further conditions, by row: `set.given(text=words.ids(set.captions))`.

        Raises:
            ValueError: not one value a picture.
        """
        for name, value in conditions.items():
            if len(value) != len(self):
                raise ValueError(f"{name} must have one row a picture, {len(self)}, got {len(value)}")
        return replace(self, conditions=self.conditions | conditions)


def decoded(
    records: Sequence[Record],
    size: int,
    *,
    channels: int = 3,
    crop: str = "centre",
    smallest: int | None = None,
    classes: Sequence[str] = (),
    findings: Findings | None = None,
    cache: str | Path | None = None,
    key: str = "",
    workers: int | None = None,
) -> Pictures:
    """Decode every record once, leave out what is broken, and keep the pixels in memory or in a folder.

    Args:
        records: in the order they shall have. size, channels, crop, smallest: as for `picture`.
        classes: names of the labels. findings: what was found before.
        cache: a folder that keeps the pixels, and is read instead of the files when it was made of the same.
        key: what says that the files are the same (names, sizes, times).
        workers: threads that decode; by default one a core.
    Raises:
        ValueError: there is no picture that can be used, or they do not fit into 4 GiB and there is no cache.
    """
    findings = findings or Findings()
    n, shape = len(records), (channels, size, size)
    need = n * channels * size * size
    if cache is None and need > _MEMORY:
        raise ValueError(
            f"{n:,} pictures of {channels} x {size} x {size} need {need / 2**30:.1f} GiB: give cache=FOLDER"
        )
    settings = json.dumps([key, n, shape, crop, smallest])
    found = None if cache is None else _read_cache(Path(cache), settings)
    if found is not None:
        return found
    work = None if cache is None else Path(cache).with_name(f".{Path(cache).name}.part")
    if work is None:
        pixels = np.empty((n, *shape), np.uint8)
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        pixels = np.lib.format.open_memmap(work / "pixels.npy", "w+", np.uint8, (max(n, 1), *shape))
    kept: list[int] = []

    def look(record: Record) -> tuple[np.ndarray | None, tuple[str, ...]]:
        try:
            raw = record.read()
        except OSError:
            return None, ("unreadable",)
        return picture(raw, size, channels=channels, crop=crop, smallest=smallest)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for first in range(0, n, 256):  # in parts, so that results do not pile up
            some = range(first, min(first + 256, n))
            for i, (square, reasons) in zip(some, pool.map(look, (records[i] for i in some)), strict=True):
                findings.note(records[i].name, square is not None, reasons)
                if square is not None:
                    pixels[len(kept)] = square
                    kept.append(i)
    if not kept:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        raise ValueError(f"there is no picture that can be used among {n} files\n{findings}")
    mine = [records[i] for i in kept]
    labels = [record.label for record in mine]
    captions = [record.caption for record in mine] if any(record.caption for record in mine) else []
    about = {
        "settings": settings,
        "names": [record.name for record in mine],
        "label": None if None in labels else labels,
        "classes": list(classes),
        "captions": captions,
        "findings": findings.to_json(),
    }
    if work is None or cache is None:
        return _pictures(pixels[: len(kept)], about)
    pixels.flush()  # type: ignore[attr-defined]
    (work / "set.json").write_text(json.dumps(about))
    shutil.rmtree(cache, ignore_errors=True)
    os.rename(work, cache)
    made = _read_cache(Path(cache), settings)
    assert made is not None
    return made


def _pictures(pixels: np.ndarray, about: dict) -> Pictures:
    label = about["label"]
    return Pictures(
        torch.from_numpy(pixels),
        tuple(about["names"]),
        None if label is None else torch.tensor(label),
        tuple(about["classes"]),
        tuple(about["captions"]),
        Findings(**about["findings"]),
    )


def _read_cache(cache: Path, settings: str) -> Pictures | None:
    if not cache.exists():
        return None
    try:
        about = json.loads((cache / "set.json").read_text())
        pixels = np.load(cache / "pixels.npy", mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        raise ValueError(f"{cache} is no cache of pictures: give another folder, or remove it") from None
    if about["settings"] != settings:
        return None
    return _pictures(pixels[: len(about["names"])], about)


def stamp(parts: Sequence[object]) -> str:
    """A key of what a set was made of."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
