"""LoRA and DoRA in files, in diffusers' and in kohya's form, for any network.

diffusers: transformer.blocks.0.attention.qkv.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
kohya:     lora_unet_blocks_0_attention_qkv.lora_down.weight, .lora_up.weight, .alpha, .dora_scale
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from suffuse.adapters.low_rank import DoRA, LoRA, stack
from suffuse.adapters.places import base, copied, layers, lifted, put
from suffuse.hub.lora import LowRank, aliases, alphas, part_of
from suffuse.training.files import ModelFileError, read_tensors, write_tensors

__all__ = ["load_lora", "save_lora"]

_MAGNITUDE = (".lora_magnitude_vector.weight", ".lora_magnitude_vector", ".dora_scale")


def save_lora(
    model: Any,
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    form: Literal["diffusers", "kohya"] = "diffusers",
) -> None:
    """Write an adapter, as trained: strengths set by `scaled` are not kept.

    Args:
        model: a module, or a `Denoiser` around one. path: a safetensors file.
        name: of the adapter, needed where there are several.
        form: diffusers', for `load_lora_weights`, or kohya's.
    Raises:
        ValueError: there is none of that name, or several and no name; another form.
    """
    if form not in ("diffusers", "kohya"):
        raise ValueError(f"form must be 'diffusers' or 'kohya', got {form!r}")
    net = model if isinstance(model, nn.Module) else model.net
    names = {low.name for low in stack(net)}
    if name is None and len(names) != 1:
        raise ValueError(
            f"{type(net).__name__} has {len(names)} adapters ({', '.join(sorted(names))}): name one of them"
        )
    name = names.pop() if name is None else name
    root, _, inner = _root(net)
    tensors: dict[str, Tensor] = {}
    for at, low in inner.named_modules():
        if isinstance(low, LoRA) and low.name == name:
            layer = _below(inner, at)
            if form == "diffusers":
                tensors[f"{root}.{layer}.lora_A.weight"] = low.down
                tensors[f"{root}.{layer}.lora_B.weight"] = low.up * (low.alpha / len(low.down))
                if isinstance(low, DoRA):
                    tensors[f"{root}.{layer}.lora_magnitude_vector"] = low.magnitude
            else:
                stem = f"lora_unet_{layer.replace('.', '_')}"
                tensors[f"{stem}.lora_down.weight"] = low.down
                tensors[f"{stem}.lora_up.weight"] = low.up
                tensors[f"{stem}.alpha"] = torch.tensor(float(low.alpha))
                if isinstance(low, DoRA):
                    tensors[f"{stem}.dora_scale"] = low.magnitude.view(-1, *[1] * (low.down.ndim - 1))
    if not tensors:
        raise ValueError(f"{type(net).__name__} has no adapter {name!r}: it has {', '.join(sorted(names)) or 'none'}")
    write_tensors(Path(path), tensors, {"format": "pt"})


def load_lora(model: Any, path: str | os.PathLike[str], *, strength: float = 1.0, name: str | None = None) -> Any:
    """A network with an adapter from a file, which can be trained on, scaled, merged and detached.

    Args:
        model: a module, or a `Denoiser` around one; it stays as it is.
        path: a safetensors file that `save_lora`, diffusers, peft or kohya's scripts wrote.
        strength: 1 is as trained, 0 is off. name: of the adapter, by default that of the file.
    Raises:
        ModelFileError: it was made for another model: says which layer or shape does not fit, and what there is.
        ValueError: a strength that is not finite, a name that is taken.
    """
    path = Path(path)
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")
    found = _read(path)

    def attach(net: nn.Module) -> nn.Module:
        called = path.stem if name is None else name
        if called in {low.name for low in stack(net)}:
            raise ValueError(f"{type(net).__name__} has an adapter {called!r} already: choose another name=")
        net = copied(net)
        root, prefix, inner = _root(net)
        known = layers(inner)
        names = {alias: at for at in known for alias in _spelt(root, at, inner)}
        strange = [key for key in found if key not in names]
        if strange:
            has = ", ".join(list(known)[:3])
            raise ModelFileError(
                f"{path} was made for another model: {len(strange)} of its {len(found)} layers are not in this "
                f"{type(base(net)[0]).__name__}, the first is {strange[0]}; here are {has}, ..."
            )
        for key, parts in found.items():
            low = _built(path, key, known[names[key]], parts, called)
            low.scaled(strength)
            put(net, prefix + names[key], low)
        return net

    return lifted(model, attach)


def _built(path: Path, key: str, layer: Any, parts: dict[str, Tensor], name: str) -> LoRA:
    lost = [part for part in ("down", "up") if part not in parts]
    if lost:
        raise ModelFileError(f"{path}: {key} lacks its {lost[0]}")
    down, up, magnitude, weight = parts["down"], parts["up"], parts.get("magnitude"), layer.weight
    wants = (len(down), *weight.shape[1:]), (len(weight), len(down))
    odd = ""
    if magnitude is not None and magnitude.numel() != len(weight):
        odd = f"a magnitude {tuple(magnitude.shape)}"
    if [_kernel(down.shape), _kernel(up.shape)] != [*map(_kernel, wants)]:
        odd = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
    if odd:
        raise ModelFileError(
            f"{path} was made for another model: {key} here is {weight.shape[1]} to {weight.shape[0]} channels, its "
            f"weight {tuple(weight.shape)}, in the file it has {odd}"
        )
    alpha = float(parts.get("alpha", torch.tensor(float(len(down)))))
    if magnitude is not None:
        return DoRA(layer, down, up, alpha, name, magnitude)
    return LoRA(layer, down, up, alpha, name)


def _kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without a kernel of one point, which some files have and others leave out."""
    return tuple(shape[:2] if math.prod(shape[2:]) == 1 else shape)


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    """Layers as the file calls them, each with its down, up, alpha and magnitude."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(path).items():
        layer, part = part_of(key.replace(".default.", ".").replace(".processor.", "."))
        for ending in _MAGNITUDE:
            if key.endswith(ending):
                layer, part = key.removesuffix(ending), "magnitude"
        found.setdefault(layer, {})[part] = value
    if not found or all("down" not in parts for parts in found.values()):
        raise ModelFileError(f"{path} holds no LoRA: its first key is {next(iter(found), '(none)')}")
    for alpha in alphas(path):
        for key, parts in found.items():
            parts.setdefault("alpha", torch.tensor(alpha(("", key), len(parts.get("down", ())))))
    return found


def _root(net: Any) -> tuple[str, str, nn.Module]:
    """What diffusers calls this network; and the part of it that names begin at, with the prefix of that part."""
    net, prefix = base(net)
    for name in ("unet", "transformer"):
        if isinstance(inner := getattr(net, name, None), nn.Module):
            return name, f"{prefix}{name}.", inner
    return ("unet" if "unet" in type(net).__name__.lower() else "transformer"), prefix, net


def _below(net: nn.Module, name: str) -> str:
    """The name of the layer that an adapter is on; a second adapter holds the first as its `layer`."""
    parent = name.rpartition(".")[0]
    return _below(net, parent) if isinstance(net.get_submodule(parent), LowRank) else name


def _spelt(root: str, name: str, net: Any) -> set[str]:
    """All names that a file may have for this layer."""
    ours = {
        name,
        f"unet.{name}",
        f"transformer.{name}",
        f"base_model.model.{name}",
        f"lora_unet_{name.replace('.', '_')}",
    }
    return ours | (
        set(aliases(root, name, net)) if hasattr(net, "config") and root in ("unet", "transformer") else set()
    )
