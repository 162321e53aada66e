"""Finding modules in any network, and a copy of it that something can be attached to."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from suffuse.denoise import Denoiser
from suffuse.hub.lora import LowRank

__all__ = ["ATTENTION", "Where", "base", "copied", "layers", "lifted", "matching", "put"]

ATTENTION = r"(attn\d*|attention)\.\w+$|\bto_\w+(\.0)?$|qkv$"
"""Projections of attention, as suffuse, diffusers and most others name them."""

Where = str | Callable[[str, nn.Module], bool]
Model = TypeVar("Model", bound="Denoiser | nn.Module")


def copied(net: nn.Module, *, own: bool = False) -> Any:
    """The same modules anew on the same weights, which are frozen in the copy and untouched in the network.

    Args:
        own: with weights of its own instead, all of them trained. What it is told (`.conditions`) is shared.
    """
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().clone() if own else p.detach(), requires_grad=own) for p in net.parameters()
    }
    for module in net.modules():
        if "conditions" in vars(module):
            memo[id(vars(module)["conditions"])] = vars(module)["conditions"]
    return copy.deepcopy(net, memo)


def lifted(model: Any, fn: Callable[[Any], Any]) -> Any:
    """fn of a network; or of the network inside a denoiser, which is told the same as before.

    Raises:
        TypeError: it is neither a module nor a denoiser around one.
    """
    if isinstance(model, nn.Module):
        return fn(model)
    if not isinstance(model, Denoiser) or not isinstance(model.net, nn.Module):
        raise TypeError(f"this attaches to a module, or to a Denoiser around one, before it is guided; got {model!r}")
    new = copy.copy(model)
    new.net = fn(model.net)
    return new


def base(net: Any) -> tuple[nn.Module, str]:
    """The network inside one that has controls, and what its names begin with there; of any other, itself."""
    inner = getattr(net, "net", None)
    controlled = isinstance(inner, nn.Module) and isinstance(getattr(net, "controls", None), nn.ModuleDict)
    return (inner, "net.") if controlled else (net, "")  # type: ignore[return-value]


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by name, each with what is attached to it.

    Those inside torch's `nn.MultiheadAttention` are left out: it reads their weights without calling them. So are those
    of a network's controls.
    """
    inside = {id(m) for low in net.modules() if isinstance(low, LowRank) for m in low.modules() if m is not low}
    inside |= {id(m) for mha in net.modules() if isinstance(mha, nn.MultiheadAttention) for m in mha.modules()}
    inside |= {id(m) for held in net.modules() if base(held)[1] for m in held.controls.modules()}  # type: ignore[union-attr]
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, LowRank)
    return {name: m for name, m in net.named_modules() if isinstance(m, kinds) and id(m) not in inside}


def matching(net: nn.Module, where: Where, among: dict[str, nn.Module] | None = None) -> dict[str, nn.Module]:
    """The modules that are meant.

    Args:
        where: a regular expression that is found in their names, or a function (name, module) -> bool.
        among: modules by name; by default `layers`.
    Raises:
        ValueError: none is; says which there are. The regular expression is none.
    """
    among = layers(net) if among is None else among
    try:
        found = {
            name: module
            for name, module in among.items()
            if (re.search(where, name) if isinstance(where, str) else where(name, module))
        }
    except re.error as error:
        raise ValueError(f"where is no regular expression: {where!r}, {error}") from None
    if not found:
        some = ", ".join(list(among)[:6]) + (f" ... ({len(among)} in all)" if len(among) > 6 else "")
        what = repr(where) if isinstance(where, str) else getattr(where, "__name__", "the function")
        raise ValueError(f"{what} matches no module of {type(net).__name__}; it has {some or 'none that could be'}")
    return found


def put(net: nn.Module, name: str, module: nn.Module) -> None:
    """Set the module of this name."""
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, module)
