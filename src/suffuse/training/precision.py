"""Which number format trains fastest here."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["autocast", "chosen"]


def chosen(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype: "auto" is bf16 where the machine computes in it, "float32" is none, "bf16" and "fp16" insist.

    Raises:
        ValueError: another name.
    """
    if precision not in ("auto", "float32", "bf16", "fp16"):
        raise ValueError(f"precision must be 'auto', 'float32', 'bf16' or 'fp16', got {precision!r}")
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    return {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        asks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(ask() for ask in asks if ask is not None)
    return False


def autocast(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Forward passes in this dtype; nothing at all for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
