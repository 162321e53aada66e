"""Networks by description: what a file says to build, and how weights are put into it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from suffuse import nets
from suffuse.training.files import ModelFileError
from suffuse.training.sharded import copy_in

__all__ = ["FORMAT", "build", "describe", "fill"]

FORMAT = 1
_NETS = ("MLP", "UNet", "DiT", "MMDiT", "EDM2", "Autoencoder")


def describe(net: nn.Module) -> dict[str, Any]:
    """{"type": name, "args": constructor arguments} of a network of suffuse, or the type alone for any other."""
    if type(net).__name__ not in _NETS or not dataclasses.is_dataclass(net):
        return {"type": type(net).__name__}
    args: dict[str, Any] = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
    if "conditions" in args:
        args["conditions"] = {name: nets.spec_to_json(spec) for name, spec in args["conditions"].items()}
    return {"type": type(net).__name__, "args": args}


def build(description: dict[str, Any]) -> nn.Module:
    """The network a description names, with fresh weights."""
    kind, args = description.get("type"), description.get("args")
    if kind not in _NETS or args is None:
        raise ModelFileError(f"the model is a {kind}, which suffuse cannot build by itself: pass load(dir, net=...)")
    args = dict(args)
    if "conditions" in args:
        args["conditions"] = {name: nets.spec_from_json(spec) for name, spec in args["conditions"].items()}
    known = {f.name for f in dataclasses.fields(getattr(nets, kind))}
    unknown = set(args) - known
    if unknown:
        raise ModelFileError(f"{kind} does not take {sorted(unknown)}: the file is of another version of suffuse")
    args = {k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}
    return getattr(nets, kind)(**args)


def fill(net: nn.Module, tensors: dict[str, Tensor], source: Any) -> None:
    """Put weights into a network; every key must be known, present and of the right shape."""
    own = net.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        told = [
            f"{len(keys)} {what} (first: {keys[0]})"
            for what, keys in (("missing", missing), ("unknown", unknown))
            if keys
        ]
        raise ModelFileError(f"{source} does not fit {type(net).__name__}: weights {', '.join(told)}")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise ModelFileError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the network wants {tuple(value.shape)}"
            )
    with torch.no_grad():
        for name, value in own.items():
            copy_in(value, tensors[name])
