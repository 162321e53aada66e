"""A loss with a setting that moves as training goes on: the gap of consistency models, the warm-up of sCM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["Annealed"]


class Annealed(nn.Module):
    """loss(model, batch, **at(share)) with `share` in [0, 1] of the rows seen; a checkpoint keeps the count.

    Annealed(losses.fewstep.consistency_training, steps * batch_size, lambda share: {"gap": intervals(10 * 2 ** (7 * share))})

    Args:
        loss: takes the settings by name. rows: of the whole training, of all processes. at: share -> settings.
    Raises:
        ValueError: rows < 1.
    """  # noqa: E501

    seen: Tensor

    def __init__(self, loss: Callable[..., Tensor], rows: int, at: Callable[[float], Mapping[str, Any]]) -> None:
        super().__init__()
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.loss, self.rows, self.at = loss, rows, at
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) losses."""
        settings = self.at(min(int(self.seen) / self.rows, 1.0))
        if self.training:
            self.seen += len(batch["x"]) * _processes()
        return self.loss(model, batch, **settings)


def _processes() -> int:
    """How many share every batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
