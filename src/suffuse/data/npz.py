"""Arrays in a file of NumPy."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["npz"]


def npz(path: str | Path, names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Read arrays of one first size N from a .npz file, without pickle.

    uint8 of shape (N, H, W), (N, H, W, 1) or (N, H, W, 3) under "x" are pictures: (N, C, H, W) float32 in [-1, 1].
    Other floating point becomes float32, other whole numbers int64.

    Args:
        path: the file.
        names: what to read, as {"x": "train_images", "label": "train_labels"}; by default every array, as it is called.
    Raises:
        ValueError: no such file or array, none is called "x", the first sizes differ, or one is of text or objects.
    """
    path = Path(path)
    try:
        file = np.load(path, allow_pickle=False)
        held = set(file.files)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        raise ValueError(f"{path} is not a whole .npz file") from None
    with file:
        names = {name: name for name in sorted(held)} if names is None else names
        if gone := [name for name in names.values() if name not in held]:
            raise ValueError(f"{path} has no array {gone[0]!r}, but {', '.join(sorted(held))}")
        if "x" not in names:
            raise ValueError(f'one array must be "x", the data: names={{"x": ...}} one of {", ".join(sorted(held))}')
        made = {name: _tensor(_array(file, where, path), name, path) for name, where in names.items()}
    sizes = {name: len(value) for name, value in made.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the arrays of {path} must have one first size, got {sizes}: choose by names=")
    return made


def _array(file: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return file[name]
    except ValueError:
        raise ValueError(f"{name!r} of {path} holds Python objects, which only pickle could read") from None


def _tensor(array: np.ndarray, name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "buif" or not array.ndim:
        raise ValueError(
            f"{name!r} of {path} is {array.dtype} of shape {array.shape}, not rows of numbers: leave it out"
        )
    if name == "x" and array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[-1] not in (1, 3):
            raise ValueError(f"pictures must be (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {array.shape} in {path}")
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))).float() / 127.5 - 1
    return torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
