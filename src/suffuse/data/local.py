"""Real sets that lie in the folder `SUFFUSE_DATA` names: MNIST, Fashion-MNIST, CIFAR-10 and emoji with their names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suffuse.data.decode import Findings
from suffuse.data.pictures import Pictures, Record, decoded

__all__ = ["cifar10", "emoji", "fashion_mnist", "mnist"]


def _read(name: str) -> Mapping[str, np.ndarray]:
    root = os.environ.get("SUFFUSE_DATA")
    if not root:
        raise FileNotFoundError(
            "the environment variable SUFFUSE_DATA is not set: it names the folder of real data sets"
        )
    file = Path(root) / name
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: SUFFUSE_DATA is {root}")
    return np.load(file, allow_pickle=False)


def _split(split: str) -> str:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return split


def _set(pixels: Tensor, label: np.ndarray, classes: tuple[str, ...], captions: tuple[str, ...] = ()) -> Pictures:
    names = tuple(map(str, range(len(pixels))))
    return Pictures(pixels, names, torch.from_numpy(label.astype(np.int64)), classes, captions, Findings(len(pixels)))


def mnist(split: str) -> Pictures:
    """Handwritten digits (LeCun et al. 1998): 60,000 to train and 10,000 to test, 1 x 28 x 28, labels 0 to 9."""
    file = _read("mnist/mnist.npz")
    pixels = torch.from_numpy(file[f"{_split(split)}_images"])[:, None]
    return _set(pixels, file[f"{split}_labels"], tuple("0123456789"))


def fashion_mnist(split: str) -> Pictures:
    """Clothes (Xiao et al. 2017): 60,000 to train and 10,000 to test, 1 x 28 x 28, ten classes."""
    files = [_read(f"fashion_mnist/fashion_mnist_{part}.npz") for part in ("ab" if _split(split) == "train" else "a")]
    pixels = np.concatenate([file[f"{split}_images"] for file in files])
    labels = np.concatenate([file[f"{split}_labels"] for file in files])
    return _set(torch.from_numpy(pixels)[:, None], labels, tuple(map(str, files[0]["class_names"])))


def cifar10(split: str) -> Pictures:
    """Photographs (Krizhevsky 2009), kept as JPEG: 50,000 to train and 10,000 to test, 3 x 32 x 32, ten classes."""
    parts = ("train_a", "train_b") if _split(split) == "train" else ("test",)
    files = [_read(f"cifar10/cifar10_{part}_jpeg.npz") for part in parts]
    records = []
    for part, file in zip(parts, files, strict=True):
        raw, at, labels = file["jpeg"].tobytes(), file["offsets"].tolist(), file["labels"].tolist()
        for k, label in enumerate(labels):
            body = raw[at[k] : at[k + 1]]
            records.append(Record(f"{part}/{k}.jpg", lambda body=body: body, label))
    return decoded(records, 32, classes=tuple(map(str, files[0]["class_names"])))


def emoji(size: int = 64) -> Pictures:
    """Noto emoji with their names as captions: 1,644 on white, 3 x size x size, labelled by group (nine)."""
    from PIL import Image

    file = _read("emoji/noto_emoji_64.npz")
    opacity = file["images"][..., 3:].astype(np.float32) / 255
    on_white = (file["images"][..., :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    if size != 64:
        on_white = np.stack(
            [np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.LANCZOS)) for x in on_white]
        )
    pixels = torch.from_numpy(np.ascontiguousarray(on_white.transpose(0, 3, 1, 2)))
    captions = tuple(map(str, file["captions"]))
    return _set(pixels, file["groups"], tuple(map(str, file["group_names"])), captions)
