"""A cache of latents on disk: every row of a set is encoded once, and training draws what was encoded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from suffuse.codec import Codec
from suffuse.data.draws import Rows, Tensors

__all__ = ["Latents", "latents"]

_ABOUT = "latents.json"


class Latents:
    """A set whose "x" are latents (C, h, w) in a memory-mapped file; its other entries are those of the set encoded."""

    def __init__(self, data: Rows, x: np.ndarray) -> None:
        self.data, self.x = data, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        mine = torch.from_numpy(self.x[rows.numpy()]).float()
        return self.data[rows] | {"x": mine}


def latents(
    data: Rows | Mapping[str, Tensor],
    codec: Codec,
    cache: str | Path,
    *,
    seed: int = 0,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Latents:
    """Encode a set, or read what was encoded before; a stop while encoding costs 16 batches.

    Args:
        data: a set whose "x" the codec encodes, row by row the same at any time (no augmentation).
        codec: encodes "x"; rows k B to k B + B - 1 with seed + k. No gradients are kept.
        cache: the folder. dtype: float32 or float16, of what is kept. device: where to encode.
    Raises:
        ValueError: the cache holds latents of another set, codec, seed or size of batches; or a latent that is not
            finite in this dtype.
    """
    data = Tensors(data) if isinstance(data, Mapping) else data
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype must be torch.float32 or torch.float16, got {dtype}")
    cache = Path(cache)
    kind = np.dtype(np.float16 if dtype == torch.float16 else np.float32)

    def encoded(k: int) -> np.ndarray:
        rows = torch.arange(k * batch_size, min((k + 1) * batch_size, len(data)))
        with torch.no_grad():
            z = codec.encode(data[rows]["x"].to(device), seed + k).to(dtype).cpu()
        if not bool(z.isfinite().all()):
            raise ValueError(f"the latents of rows {rows[0].item()} to {rows[-1].item()} are not finite in {dtype}")
        return z.numpy()

    start = encoded(0)
    wanted = {
        "items": len(data),
        "seed": seed,
        "batch_size": batch_size,
        "dtype": kind.name,
        "shape": [*start.shape[1:]],
    }
    work = cache.with_name(f".{cache.name}.part")
    if (cache / _ABOUT).is_file():
        return Latents(data, _checked(cache, wanted, start))
    done = 0
    if (work / _ABOUT).is_file():
        done = json.loads((work / _ABOUT).read_text())["batches"]
        x = _checked(work, wanted, start, mode="r+")
    else:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        x = np.lib.format.open_memmap(work / "x.npy", "w+", kind, (len(data), *start.shape[1:]))
    total = -(-len(data) // batch_size)
    for k in range(done, total):
        x[k * batch_size : (k + 1) * batch_size] = start if k == 0 else encoded(k)
        if k % 16 == 0 or k == total - 1:
            x.flush()  # type: ignore[attr-defined]
            part = work / f"{_ABOUT}.part"
            part.write_text(json.dumps(wanted | {"batches": k + 1}))
            os.replace(part, work / _ABOUT)
    del x
    os.rename(work, cache)
    return Latents(data, _checked(cache, wanted, start))


def _checked(folder: Path, wanted: dict[str, Any], start: np.ndarray, mode: Any = "r") -> np.ndarray:
    about = json.loads((folder / _ABOUT).read_text())
    for key, value in wanted.items():
        if about.get(key) != value:
            raise ValueError(f"{folder} holds latents with {key} = {about.get(key)}, not {value}: give another folder")
    x = np.load(folder / "x.npy", mmap_mode=mode, allow_pickle=False)
    if not np.allclose(x[: len(start)], start, rtol=2e-2, atol=2e-2):  # a different machine may round differently
        raise ValueError(f"{folder} holds latents of other data or another codec: give another folder, or remove it")
    return x
