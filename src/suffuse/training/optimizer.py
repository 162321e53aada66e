"""What takes the steps: AdamW, or Muon for the matrices and kernels of repeated blocks with AdamW for the rest."""

from __future__ import annotations

import math
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
    and convolutions (outputs against all else) inside an `nn.ModuleList`: the blocks, where nearly all of a network is;
    AdamW for all others.

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
            self.parts.append(_Muon(matrices, lr=own, weight_decay=weight_decay))
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
        """Take up what `tensors` gave; whole tensors are shared out where the parameters are.

        Raises:
            ValueError: the tensors are of other parameters.
        """
        every = self._every()
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            i, key = name.split(".", 1)
            if value.ndim and (int(i) >= len(every) or value.shape != every[int(i)].shape):
                raise ValueError(
                    f"the checkpoint's optimiser remembers {name!r} of shape {tuple(value.shape)}, which no parameter "
                    "here has: it was begun by another optimiser or an earlier version; begin anew with overwrite=True"
                )
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


class _Muon(torch.optim.Optimizer):
    """Muon for kernels too, with matrices of one size orthogonalised together, which takes half the time on small ones

        M <- mu M + (1 - mu) G,    W <- (1 - lr decay) W - 0.2 lr sqrt(max side) orthogonal((1 - mu) G + mu M)

    Of matrices shared out between processes each keeps its part of M, and all of them find the direction of the whole.
    """

    together = 2**22
    """Elements at a time: beyond, one matrix keeps the machine busy."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            mu, lr, decay = (group[name] for name in ("momentum", "lr", "weight_decay"))
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for shape, every in alike.items():
                n = max(1, self.together // shape.numel())
                for some in (every[i : i + n] for i in range(0, len(every), n)):
                    along = []
                    for p in some:
                        grad: Any = p.grad
                        momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                        momentum.lerp_(grad, 1 - mu)
                        along.append(gather(grad.lerp(momentum, mu)).flatten(1))
                    size = 0.2 * math.sqrt(max(along[0].shape))
                    for p, step in zip(some, _orthogonal(torch.stack(along)), strict=True):
                        local(p).mul_(1 - lr * decay).add_(part_of(step.view(shape), p), alpha=-lr * size)


def _orthogonal(g: Tensor) -> Tensor:
    """U S V^T -> about U V^T of each matrix (N, A, B), in bf16: five steps of x <- a x + (b x x^T + c (x x^T)^2) x."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at 0 where all singular values end in about (0.7, 1.2)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _matrices(net: nn.Module) -> Iterator[Tensor]:
    seen: set[int] = set()
    for blocks in net.modules():
        if isinstance(blocks, nn.ModuleList):
            for layer in blocks.modules():
                kernel = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.groups == 1
                if not isinstance(layer, nn.Linear) and not kernel:
                    continue
                weight = layer.weight  # no parameter where something computes it
                if isinstance(weight, nn.Parameter) and id(weight) not in seen:
                    seen.add(id(weight))
                    yield weight
