"""LoRA and DoRA on any network: its weights stay as they are, and a change of low rank is learned beside them.

LoRA:  W' = W + scale (alpha/rank) B A                              B begins at 0
DoRA:  W' = m V / |V|,  V = W + scale (alpha/rank) B A              m begins at |W|, the norm of each row

Hu et al. 2021, section 4.1; Liu et al. 2024 (DoRA), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from suffuse.adapters.places import ATTENTION, Where, copied, lifted, matching, put
from suffuse.hub.lora import LowRank

__all__ = ["DoRA", "LoRA", "baked", "detached", "lora", "merged", "scaled", "share", "stack", "unmerged"]


class LoRA(LowRank):
    """layer(x) + scale (alpha/rank) B A x, for a linear layer or a convolution; the layer may itself be one.

    Args:
        layer: what is changed. down: A, (rank, in, ...). up: B, (out, rank, ...). alpha: as in the formula.
        name: of the adapter that this is a part of.
    """

    kind = "LoRA"

    def __init__(self, layer: nn.Module, down: Tensor, up: Tensor, alpha: float, name: str) -> None:
        super().__init__(layer, down, up, alpha / len(down))
        self.alpha, self.name, self.strength, self.merged = alpha, name, 1.0, False

    def scaled(self, strength: float) -> None:
        """Set the strength, 1 as trained."""
        self.strength, self.scale = strength, strength * self.alpha / len(self.down)

    @property
    def delta(self) -> Tensor:
        """scale (alpha/rank) B A, of the weight's shape."""
        weight: Any = self.layer.weight
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).reshape(weight.shape)

    def inwards(self, weight: Tensor) -> Tensor:
        """The layer's weight with this in it."""
        return weight + self.delta.to(weight)

    def outwards(self, weight: Tensor) -> Tensor:
        """The layer's weight without it again."""
        return weight - self.delta.to(weight)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        out, layer = self.layer(x, *args, **options), _layer(self)
        if self.merged:
            return out
        if self.down.ndim == 2:
            return out + self.scale * ((x @ self.down.mT) @ self.up.mT)
        low = layer._conv_forward(x, self.down, None)  # with the layer's stride, dilation and kind of padding
        return out + self.scale * getattr(nn.functional, f"conv{self.down.ndim - 2}d")(low, self.up)


class DoRA(LoRA):
    """A layer with the weight m V / |V|; the norm takes no gradient (section 4.3).

    Args:
        layer, down, up, alpha, name: as for `LoRA`. magnitude: m, (out,), by default that of the layer.
    Raises:
        ValueError: the layer has an adapter already.
    """

    kind = "DoRA"

    def __init__(
        self, layer: nn.Module, down: Tensor, up: Tensor, alpha: float, name: str, magnitude: Tensor | None = None
    ) -> None:
        if isinstance(layer, LowRank):
            raise ValueError(
                f"DoRA needs the layer itself, and there is a {type(layer).__name__} on it: attach it first"
            )
        super().__init__(layer, down, up, alpha, name)
        weight: Any = layer.weight
        self.magnitude = nn.Parameter(_norm(weight) if magnitude is None else magnitude.to(weight).flatten())

    def inwards(self, weight: Tensor) -> Tensor:
        v = super().inwards(weight)
        self.factor = (self.strength * (self.magnitude / _norm(v) - 1) + 1).view(-1, *[1] * (v.ndim - 1))
        return self.factor * v

    def outwards(self, weight: Tensor) -> Tensor:
        return super().outwards(weight / self.factor.to(weight))

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if self.merged:
            return self.layer(x, *args, **options)
        weight: Any = self.layer.weight
        return functional_call(self.layer, {"weight": self.inwards(weight)}, (x, *args), options)


def _norm(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).norm(dim=1)


def lora(
    model: Any,
    where: Where = ATTENTION,
    *,
    rank: int = 4,
    alpha: float | None = None,
    dora: bool = False,
    name: str = "lora",
    seed: int = 0,
) -> Any:
    """A network with a LoRA, which alone is trained; fresh, it is the network bit for bit. Several are several calls.

    Args:
        model: a module, or a `Denoiser` around one. It shares its weights with what is returned, and stays as it is.
        where: the layers, see `matching`; by default the projections of every attention.
        rank: of the change. alpha: as in the formula, by default the rank. dora: a DoRA instead.
        name: what `scaled`, `detached` and the files know it by.
        seed: of A, uniform in +-1/sqrt(in).
    Raises:
        ValueError: `where` matches nothing, or is no regular expression; a rank below 1, or a fraction; a name that is
            taken; a convolution in groups.
        TypeError: the model is guided already, or no module.
    """
    if not isinstance(rank, int) or rank < 1 or (alpha is not None and not math.isfinite(alpha)):
        raise ValueError(f"rank must be a whole number of at least 1 and alpha finite, got {rank} and {alpha}")

    def attach(net: nn.Module) -> nn.Module:
        if name in {low.name for low in stack(net)}:
            raise ValueError(f"{type(net).__name__} has an adapter {name!r} already: choose another name=")
        net, random = copied(net), torch.Generator().manual_seed(seed)
        for path, layer in matching(net, where).items():
            down, up = _fresh(path, layer, rank, random)
            put(net, path, (DoRA if dora else LoRA)(layer, down, up, rank if alpha is None else alpha, name))
        return net

    return lifted(model, attach)


def _fresh(path: str, layer: Any, rank: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    weight: Tensor = layer.weight
    if getattr(layer, "groups", 1) > 1:
        raise ValueError(f"{path} is a convolution in {layer.groups} groups, which has no LoRA: leave it out of where=")
    bound = weight[0].numel() ** -0.5
    down = (2 * torch.rand(rank, *weight.shape[1:], generator=random) - 1) * bound
    return down, torch.zeros(len(weight), rank, *[1] * (weight.ndim - 2))


def stack(net: nn.Module) -> list[LoRA]:
    """Every adapter's part in every layer, inner ones first."""
    return [module for module in reversed(list(net.modules())) if isinstance(module, LoRA)]


def _named(net: nn.Module, name: str | None) -> list[LoRA]:
    found = stack(net)
    known = sorted({low.name for low in found})
    if not found or (name is not None and name not in known):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{type(net).__name__} has no adapter{'' if name is None else f' {name!r}'}: {has}")
    return [low for low in found if name in (None, low.name)]


def scaled(model: Any, strength: float, name: str | None = None) -> Any:
    """The network with an adapter, or all of them, at another strength: 1 is as trained, 0 is off.

    Raises:
        ValueError: there is no such adapter; it is merged; the strength is not finite.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")

    def change(net: nn.Module) -> nn.Module:
        net = _kept(net)
        for low in _named(net, name):
            if low.merged:
                raise ValueError(f"adapter {low.name!r} is merged into the weights: unmerge it before it is scaled")
            low.scaled(strength)
        return net

    return lifted(model, change)


def merged(model: Any) -> Any:
    """The network with all adapters added to the weights, at the base's own cost; the model itself stays as it is.

    Raises:
        ValueError: there is none.
    """
    return lifted(model, lambda net: _moved(net, into=True))


def unmerged(model: Any) -> Any:
    """What `merged` was given: the adapters beside the weights again, which come back to rounding."""
    return lifted(model, lambda net: _moved(net, into=False))


def _moved(net: nn.Module, *, into: bool) -> nn.Module:
    net = _kept(net)
    found = _named(net, None)
    with torch.no_grad():
        for low in found if into else reversed(found):
            if low.merged != into:
                layer = _layer(low)
                change = low.inwards if into else low.outwards
                layer.weight = nn.Parameter(change(layer.weight.double()).to(layer.weight), requires_grad=False)
                low.merged = into
    return net


def _layer(low: nn.Module) -> Any:
    while isinstance(low, LowRank):
        low = low.layer
    return low


def detached(model: Any, name: str | None = None) -> Any:
    """The network without an adapter, or without any.

    Raises:
        ValueError: there is no such adapter; it is merged.
    """

    def change(net: nn.Module) -> nn.Module:
        net = _kept(net)
        for low in _named(net, name):
            if low.merged:
                raise ValueError(f"adapter {low.name!r} is merged into the weights: unmerge it before it is detached")
        return _without(net, lambda low: name in (None, low.name))

    return lifted(model, change)


def baked(model: Any) -> Any:
    """A plain network with all adapters in its weights, which `sf.save` keeps like any other."""
    return lifted(model, lambda net: _without(_moved(net, into=True), lambda low: True))


def _without(net: nn.Module, drop: Callable[[LoRA], bool]) -> nn.Module:
    while True:
        name = next((n for n, m in net.named_modules() if isinstance(m, LoRA) and drop(m)), None)
        if name is None:
            return net
        put(net, name, net.get_submodule(name).layer)  # type: ignore[arg-type]


def _kept(net: nn.Module) -> nn.Module:
    """A copy on the same weights in which what was trained still is."""
    new = copied(net)
    for old, fresh in zip(net.parameters(), new.parameters(), strict=True):
        fresh.requires_grad_(old.requires_grad)
    return new


def share(model: Any) -> float:
    """What share of all weights is trained."""
    net = model if isinstance(model, nn.Module) else model.net
    return sum(p.numel() for p in net.parameters() if p.requires_grad) / sum(p.numel() for p in net.parameters())
