"""From a batch to gradients, as a function of (seed, step): what is repeated is exactly what was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.training.precision import autocast

__all__ = ["Backward", "Loss", "mixed"]

Loss = Callable[[Any, dict[str, Tensor]], Tensor]


def mixed(*words: int | str) -> int:
    """A 63-bit seed from several words, by SHA-256."""
    return int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class Backward:
    """Losses of a batch and the gradient of their mean, with torch's generator seeded for the step and put back.

    Args:
        loss: (model, batch) -> (B,). seed: of everything random. dtype: of autocast, or None.
        parts: the batch goes through in so many equal parts, whose gradients add up.
        scaler: for fp16, whose small gradients would be 0: losses are multiplied, gradients divided.
    """

    loss: Loss
    seed: int
    dtype: torch.dtype | None
    device: torch.device
    parts: int = 1
    scaler: torch.amp.GradScaler | None = None

    @property
    def cuda(self) -> list[torch.device]:
        """The devices whose generators are put back."""
        return [self.device] if self.device.type == "cuda" else []

    def losses(self, model: Any, batch: dict[str, Tensor], step: int, part: int = 0) -> Tensor:
        """The loss of each row of one part of a batch."""
        words = ("step", self.seed, step) if part == 0 else ("step", self.seed, step, part)
        with torch.random.fork_rng(self.cuda), autocast(self.dtype, self.device):
            torch.manual_seed(mixed(*words))
            return self.loss(model, self.rows(batch, part))

    def rows(self, batch: dict[str, Tensor], part: int) -> dict[str, Tensor]:
        """One of the equal parts of a batch."""
        if self.parts == 1:
            return batch
        return {name: value.chunk(self.parts)[part] for name, value in batch.items()}

    def __call__(self, model: Any, batch: dict[str, Tensor], step: int) -> tuple[list[Tensor], Tensor]:
        """Add the gradient of the mean loss to every parameter's; the losses of each part, and their mean."""
        every, total = [], None
        for part in range(self.parts):
            losses = self.losses(model, batch, step, part)
            mean = losses.mean() if self.parts == 1 else losses.mean() / self.parts
            (mean if self.scaler is None else self.scaler.scale(mean)).backward()
            every.append(losses.detach())
            total = mean.detach() if total is None else total + mean.detach()
        assert total is not None
        return every, total
