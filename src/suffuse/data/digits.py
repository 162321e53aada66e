"""The 1,797 real handwritten digits, 8 x 8, that come inside scikit-learn (Alpaydin & Kaynak 1998, UCI)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["digits"]


def digits(split: str) -> dict[str, Tensor]:
    """Handwritten digits.

    Args:
        split: "train" (1,437) or "test" (360): a fixed 80/20 split with every class in its share.
    Returns:
        "x" (N, 1, 8, 8) float32 in [-1, 1], "label" (N,) in 0..9.
    Raises:
        ValueError: another split.
        ModuleNotFoundError: scikit-learn is not installed; says how.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install 'suffuse[data]'") from None
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    x, y = (parts[0], parts[2]) if split == "train" else (parts[1], parts[3])
    images = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return {"x": images, "label": torch.as_tensor(y, dtype=torch.long)}
