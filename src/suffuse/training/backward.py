"""From a batch to gradients, as a function of (seed, step): what is repeated is exactly what was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from suffuse.training.parallel import ALONE, Peers
from suffuse.training.precision import autocast
from suffuse.training.sharded import sharded
from suffuse.training.shares import share

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
        team: the processes whose gradients are averaged; the batch is this one's rows.
        synced: `_Losses` under DDP, or the sharded network, or None.
    """

    loss: Loss
    seed: int
    dtype: torch.dtype | None
    device: torch.device
    parts: int = 1
    scaler: torch.amp.GradScaler | None = None
    team: Peers = ALONE
    synced: Any = None

    def among(self, team: Peers, model: Any, trains: nn.Module, net: nn.Module) -> Backward:
        """The same for several processes; DDP goes around the whole loss, so the loss may call its network in any way.

        Args:
            team: the processes. model: goes to the loss. trains: what is trained. net: the network, perhaps sharded.
        """
        if team.count == 1:
            return self
        own = replace(self, team=team)
        if any(sharded(p) for p in net.parameters()):
            return replace(own, synced=_Sharded([net] if trains is net else list(trains.children())))
        ids = [self.device.index] if self.device.type == "cuda" else None
        return replace(own, synced=_Replicated(_Losses(own, model, trains), ids))

    @property
    def cuda(self) -> list[torch.device]:
        """The devices whose generators are put back."""
        return [self.device] if self.device.type == "cuda" else []

    def losses(self, model: Any, batch: dict[str, Tensor], step: int, part: int = 0) -> Tensor:
        """The loss of each row of one part of a batch."""
        words = ("step", self.seed, step) if part == 0 else ("step", self.seed, step, part)
        mine = self.rows(batch, part)
        with torch.random.fork_rng(self.cuda), autocast(self.dtype, self.device), self.share(mine):
            torch.manual_seed(mixed(*words))
            return self.loss(model, mine)

    def share(self, rows: dict[str, Tensor]) -> Any:
        """Draw random numbers as one process would for the rows of all."""
        return share(self.team, len(next(iter(rows.values()))))

    def rows(self, batch: dict[str, Tensor], part: int) -> dict[str, Tensor]:
        """One of the equal parts of a batch."""
        if self.parts == 1:
            return batch
        return {name: value.chunk(self.parts)[part] for name, value in batch.items()}

    def __call__(self, model: Any, batch: dict[str, Tensor], step: int) -> tuple[list[Tensor], Tensor]:
        """Add the gradient of the mean loss to every parameter's; the losses of each part, and their mean."""
        every, total = [], None
        for part in range(self.parts):
            with nullcontext() if self.synced is None else self.synced.exchange(part == self.parts - 1):
                if isinstance(self.synced, _Replicated):
                    losses = self.synced(batch, step, part)
                else:
                    losses = self.losses(model, batch, step, part)
                mean = losses.mean() if self.parts == 1 else losses.mean() / self.parts
                (mean if self.scaler is None else self.scaler.scale(mean)).backward()
            every.append(losses.detach())
            total = mean.detach() if total is None else total + mean.detach()
        if self.synced is not None:
            self.synced.finish()
        assert total is not None
        return every, total


class _Losses(nn.Module):
    """The losses of a step as a module, for DDP."""

    def __init__(self, how: Backward, model: Any, trains: nn.Module) -> None:
        super().__init__()
        self.trains = trains
        self._do = (how, model)  # in a tuple: no part of the module

    def forward(self, batch: dict[str, Tensor], step: int, part: int) -> Tensor:
        how, model = self._do
        return how.losses(model, batch, step, part)


class _Replicated(DistributedDataParallel):
    """Every process holds all weights; gradients are averaged while the backward pass still runs."""

    def __init__(self, losses: _Losses, ids: Any) -> None:
        super().__init__(losses, device_ids=ids, gradient_as_bucket_view=True)
        self._checked = False

    def exchange(self, last: bool) -> Any:
        return nullcontext() if last else self.no_sync()

    def finish(self) -> None:
        if self._checked:
            return
        self._checked = True
        unused = [name for name, p in self.module.trains.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            raise ValueError(
                f"the loss does not use {len(unused)} of the trained tensors ({unused[0]} first): with several "
                "processes each must be used in every step; freeze them with requires_grad_(False)"
            )


class _Sharded:
    """Every process holds a part of the network, and of the loss's own weights."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def exchange(self, last: bool) -> Any:
        for module in self.modules:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def finish(self) -> None:
        pass
