"""What takes the steps: AdamW, or Muon for the matrices of repeated blocks with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.training.sharded import copy_in, gather, local, part_of, sharded

__all__ = ["Optimizer"]


class Optimizer:
    """One step of every parameter.

    "adamw": m / (sqrt(v) + eps), decoupled decay, betas (0.9, 0.99).
    "muon": the momentum's nearest orthogonal matrix, scaled to AdamW's usual step, for the weights of linear layers
    inside an `nn.ModuleList`: the blocks, where nearly all of a network is; AdamW for all others.

    Args:
        name: "adamw" or "muon". net: what is trained. lr: peak rate. weight_decay: decoupled, of both.
        lr_matrices: Muon's own peak rate, by default the same.
    Raises:
        ValueError: another name.

    Loshchilov & Hutter 2019; Jordan et al. 2024 (Muon); the scale is of Liu et al. 2025.
    """

    def __init__(
        self, name: str, net: nn.Module, lr: float, weight_decay: float, lr_matrices: float | None = None
    ) -> None:
        if name not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', got {name!r}")
        if lr_matrices is not None and name != "muon":
            raise ValueError(f"lr_matrices is Muon's rate, got {lr_matrices:g} with optimizer={name!r}")
        matrices = list(_matrices(net)) if name == "muon" else []
        taken = {id(p) for p in matrices}
        others = [p for p in net.parameters() if id(p) not in taken]
        fused = all(p.device.type in ("cpu", "cuda") for p in others)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused)
        ]
        if matrices:
            own = lr if lr_matrices is None else lr_matrices
            muon = _ShardedMuon if any(sharded(p) for p in matrices) else torch.optim.Muon
            self.parts.append(muon(matrices, lr=own, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Divide the gradients by what the scaler multiplied the loss with."""
        for part in self.parts:
            scaler.unscale_(part)

    def step(self, share: float | None) -> None:
        """Update every parameter at this share of its peak rate, or none for None, and forget the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            if share is not None:
                for group, peak in zip(part.param_groups, peaks, strict=True):
                    group["lr"] = peak * share
                part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Everything it remembers, by "number of the parameter.name"."""
        return {
            f"{first + i}.{key}": value
            for first, part in self._numbered()
            for i, entry in part.state_dict()["state"].items()
            for key, value in entry.items()
        }

    def empty(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Zeros to read `tensors` of these names into, shared out between processes as the parameters are."""
        every = self._every()
        return {
            name: torch.zeros(()) if shape == () else torch.zeros_like(every[int(name.split(".", 1)[0])].detach())
            for name, shape in shapes.items()
        }

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave; whole tensors are shared out where the parameters are."""
        every = self._every()
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            i, key = name.split(".", 1)
            of = every[int(i)].detach()
            if sharded(of) and not sharded(value) and value.ndim:
                whole, value = value, torch.zeros_like(of)
                copy_in(value, whole)
            entries.setdefault(int(i), {})[key] = value
        for first, part in self._numbered():
            n = sum(len(group["params"]) for group in part.param_groups)
            own: dict[str, Any] = {"state": {i - first: v for i, v in entries.items() if first <= i < first + n}}
            part.load_state_dict(own | {"param_groups": part.state_dict()["param_groups"]})

    def _every(self) -> list[Tensor]:
        return [p for part in self.parts for group in part.param_groups for p in group["params"]]

    def _numbered(self) -> Iterator[tuple[int, torch.optim.Optimizer]]:
        first = 0
        for part in self.parts:
            yield first, part
            first += sum(len(group["params"]) for group in part.param_groups)


class _ShardedMuon(torch.optim.Muon):
    """Muon of matrices shared out between processes: each keeps its part of the momentum, and of the step

        M <- mu M + (1 - mu) G,    W <- (1 - lr decay) W - lr orthogonal((1 - mu) G + mu M),

    whose direction all of them find, for one whole matrix after the other.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alone = {name: group[name] for name in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                along = gather(p.grad.lerp(momentum, group["momentum"]))
                step = torch.zeros_like(along)
                step.grad = along
                torch.optim.Muon([step], weight_decay=0.0, momentum=0.0, nesterov=False, **alone).step()
                local(p).mul_(1 - group["lr"] * group["weight_decay"]).add_(part_of(step, p))


def _matrices(net: nn.Module) -> Iterator[Tensor]:
    seen: set[int] = set()
    for blocks in net.modules():
        if isinstance(blocks, nn.ModuleList):
            for layer in blocks.modules():
                if isinstance(layer, nn.Linear) and id(layer.weight) not in seen:
                    seen.add(id(layer.weight))
                    yield layer.weight
