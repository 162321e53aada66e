"""LoRA: weights that are changed by matrices of low rank, from files in diffusers', peft's and kohya's forms.

layer(x) + scale (alpha/rank) up(down(x))

Hu et al. 2021, section 4.1.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.control import replaced
from suffuse.training.files import ModelFileError, read_tensors, write_tensors

__all__ = ["Keys", "LowRank", "lora", "save_lora"]

_PAIRS = {  # how down and up are called, in front of ".weight"
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_down": "down",
    ".lora_up": "up",
    ".lora.down": "down",
    ".lora.up": "up",
    "_lora.down": "down",
    "_lora.up": "up",
    ".lora_linear_layer.down": "down",
    ".lora_linear_layer.up": "up",
}


@dataclass
class Keys:
    """What a file of LoRA weights was to a model.

    Attributes:
        matched: layers that are changed now. missing: keys that should be there beside others.
        unexpected: keys that fit nothing in the model.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


class LowRank(nn.Module):
    """layer(x) + scale up(down(x)), for a linear layer or a convolution.

    Args:
        layer: what is changed. down: (rank, in, ...). up: (out, rank, ...). scale: strength alpha/rank.
    """

    def __init__(self, layer: nn.Module, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, scale
        weight: Any = layer.weight
        ends = (1,) * (weight.ndim - 2)  # some files keep 1 x 1 convolutions as matrices, or the other way round
        self.down, self.up = (
            nn.Parameter((v.reshape(*v.shape[:2], *ends) if v.numel() == v.shape[0] * v.shape[1] else v).to(weight))
            for v in (down, up)
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("down", "up", "layer"):
                raise
            return getattr(super().__getattr__("layer"), name)  # its weight, its number of features

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        layer: Any = self.layer
        if self.down.ndim == 4:
            around = (layer.stride, layer.padding) if self.down.shape[-1] > 1 else (layer.stride, 0)
            low = nn.functional.conv2d(x, self.down, None, *around)
            return layer(x, *args, **options) + self.scale * nn.functional.conv2d(low, self.up)
        return layer(x, *args, **options) + self.scale * ((x @ self.down.mT) @ self.up.mT)


def lora(
    model: Denoiser, path: str | os.PathLike[str], *, scale: float = 1.0, strict: bool = True
) -> tuple[Denoiser, Keys]:
    """A model with LoRA weights beside its own, which are shared and stay as they are; several are several calls.

    Args:
        model: read by `sf.hub.diffusers`.
        path: a safetensors file. Keys may begin with the part ("unet.", "text_encoder."), as diffusers writes them;
            with "base_model.model." or nothing, as peft does; or with "lora_unet_", "lora_te_", as kohya's scripts do.
        scale: 1 is as trained, 0 is off.
        strict: keys that fit nothing, or lack their other half, are errors; else they are only told.
    Returns:
        The model, and which keys were matched, missing and unexpected. Prompts it was told before are to be given anew
        where a text encoder changes.
    Raises:
        ModelFileError: nothing in the file fits; or something does not, and `strict`.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    roots = _roots(model)
    names = {
        alias: (root, name)
        for root, net in roots.items()
        for name in _layers(net)
        for alias in aliases(root, name, net)
    }
    found, keys = _read(Path(path), names)
    if not keys.matched:
        raise ModelFileError(
            f"{path}: nothing fits {type(model.net).__name__}; the first of {len(keys.unexpected)} keys is "
            f"{(keys.unexpected + keys.missing + ['(none)'])[0]}"
        )
    if strict and (keys.unexpected or keys.missing):
        what, first = ("unexpected", keys.unexpected) if keys.unexpected else ("missing", keys.missing)
        raise ModelFileError(f"{path}: {len(first)} keys are {what}, the first is {first[0]}; strict=False leaves them")
    changed = {root: _clone(net) for root, net in roots.items()}
    for (root, name), parts in found.items():
        parent, _, last = name.rpartition(".")
        owner = changed[root].get_submodule(parent)
        layer, rank = owner.get_submodule(last), len(parts["down"])
        _fits(path, name, layer, parts)
        alpha = float(parts["alpha"]) if "alpha" in parts else rank
        setattr(owner, last, LowRank(layer, parts["down"], parts["up"], scale * alpha / rank).eval())
    return _with(model, changed), keys


def _fits(path: Any, name: str, layer: Any, parts: Mapping[str, Tensor]) -> None:
    out, into = layer.weight.shape[:2]
    if parts["down"].shape[1] != into or parts["up"].shape[0] != out or parts["up"].shape[1] != len(parts["down"]):
        down, up = tuple(parts["down"].shape), tuple(parts["up"].shape)
        raise ModelFileError(f"{path}: {name} is {into} to {out}, its LoRA has down {down} and up {up}")


def save_lora(model: Denoiser, path: str | os.PathLike[str]) -> None:
    """Write a model's LoRA weights in diffusers' form, for `load_lora_weights`.

    Raises:
        ValueError: the model has none, or more than one on a layer.
    """
    tensors: dict[str, Tensor] = {}
    for root, net in _roots(model).items():
        for name, module in net.named_modules():
            if isinstance(module, LowRank):
                if isinstance(module.layer, LowRank):
                    raise ValueError(f"{name} has more than one LoRA: they cannot be written as one")
                tensors[f"{root}.{name}.lora_A.weight"] = module.down
                tensors[f"{root}.{name}.lora_B.weight"] = module.up * module.scale
    if not tensors:
        raise ValueError(f"this {type(model.net).__name__} has no LoRA weights to write")
    write_tensors(Path(path), tensors, {"format": "pt"})


def _roots(model: Denoiser) -> dict[str, nn.Module]:
    """The networks that a file may change, by diffusers' names of the parts."""
    net: Any = model.net
    while hasattr(net, "net"):
        net = net.net
    found = {name: part for name in ("unet", "transformer") if (part := getattr(net, name, None)) is not None}
    encoders = getattr(model.conditions.get("text"), "encoders", ())
    return found | {f"text_encoder{'' if i == 0 else f'_{i + 1}'}": e.net for i, e in enumerate(encoders)}


def _with(model: Denoiser, changed: Mapping[str, nn.Module]) -> Denoiser:
    """The model with these networks in the places of its own."""

    def rebuilt(net: Any) -> Any:
        new = copy.copy(net)
        new._modules = dict(net._modules)
        for name in ("unet", "transformer"):
            if name in changed and name in new._modules:
                new._modules[name] = changed[name]
        if "net" in new._modules:
            new._modules["net"] = rebuilt(net.net)
        new.conditions = dict(net.conditions)
        if hasattr(new.conditions.get("text"), "encoders"):
            new.conditions["text"] = text
        return new

    text: Any = model.conditions.get("text")
    if hasattr(text, "encoders"):
        nets = [changed[name] for name in changed if name.startswith("text_encoder")]
        text = text.using(nets)
    return replaced(model, rebuilt(model.net))


def _clone(net: nn.Module) -> nn.Module:
    """The same modules anew, on the same weights."""
    shared = {id(v): v for v in (*net.parameters(), *net.buffers())}
    return copy.deepcopy(net, shared)


def _layers(net: nn.Module) -> Iterator[str]:
    inside = {id(module.layer) for module in net.modules() if isinstance(module, LowRank)}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, LowRank)) and id(module) not in inside:
            yield name


def aliases(root: str, name: str, net: Any) -> Iterator[str]:
    """All names that a file may have for this layer, without down and up."""
    old = re.sub(r"\.to_out\.0$", ".to_out", name)
    short = name.removeprefix("text_model.")
    for spelt in {name, old, short, f"text_model.{short}"}:
        yield f"{root}.{spelt}"
    if root in ("unet", "transformer"):
        yield from (name, f"base_model.model.{name}", f"lora_unet_{name.replace('.', '_')}")
        if root == "unet":
            yield f"lora_unet_{_ldm(name, net.config.layers_per_block).replace('.', '_')}"
    else:
        number = root.removeprefix("text_encoder").removeprefix("_") or "1"
        for prefix in {f"te{number}", "te"} if number == "1" else {f"te{number}"}:
            yield f"lora_{prefix}_text_model_{short.replace('.', '_')}"
            yield f"lora_{prefix}_{short.replace('.', '_')}"


def _ldm(name: str, layers: int) -> str:
    """The name of a layer of a U-Net in the original code of latent diffusion, which kohya's SDXL files follow."""
    inside = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}

    def within(rest: str) -> str:
        return inside.get(rest, rest.replace("conv_shortcut", "skip_connection"))

    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, i, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{within(rest)}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        block, kind, i, rest = match.groups()
        at = 1 + int(block) * (layers + 1) + (layers if kind == "downsamplers" else int(i))
        rest = "op" if kind == "downsamplers" else within(rest)
        return f"input_blocks.{at}.{1 if kind == 'attentions' else 0}.{rest}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        block, kind, i, rest = match.groups()
        at = int(block) * (layers + 1) + (layers if kind == "upsamplers" else int(i))
        return f"output_blocks.{at}.{ {'resnets': 0, 'attentions': 1, 'upsamplers': 2}[kind] }.{within(rest)}"
    ends = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0"}
    ends |= {"time_embedding.linear_2": "time_embed.2"}
    ends |= {f"add_embedding.linear_{i + 1}": f"label_emb.0.{2 * i}" for i in range(2)}
    return ends.get(name, name)


def _read(path: Path, names: Mapping[str, tuple[str, str]]) -> tuple[dict[tuple[str, str], dict[str, Tensor]], Keys]:
    """Down, up and alpha of every layer, and what became of the keys."""
    tensors, keys = dict(read_tensors(path)), Keys()
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    called: dict[tuple[str, str], str] = {}
    for key, value in tensors.items():
        layer, part = part_of(key.replace(".default.", ".").replace(".processor.", "."))
        if layer not in names:
            keys.unexpected.append(key)
            continue
        found.setdefault(names[layer], {})[part] = value
        called[names[layer]] = key
    for alpha in alphas(path):
        for at, parts in found.items():
            parts.setdefault("alpha", torch.tensor(alpha(at, len(parts.get("down", ())))))
    for at, parts in list(found.items()):
        lost = [part for part in ("down", "up") if part not in parts]
        if lost:
            keys.missing += [f"the {part} beside {called[at]}" for part in lost]
            del found[at]
        else:
            keys.matched.append(".".join(at))
    return found, keys


def alphas(path: Path) -> Iterator[Any]:
    """lora_alpha of an adapter_config.json beside peft's file, as a function of the layer and its rank."""
    config = path.parent / "adapter_config.json"
    if path.name == "adapter_model.safetensors" and config.exists():
        about = json.loads(config.read_text())
        pattern, root = about.get("alpha_pattern") or {}, bool(about.get("use_rslora"))

        def alpha(at: tuple[str, str], rank: int) -> float:
            value = next((v for k, v in pattern.items() if at[1].endswith(k)), about["lora_alpha"])
            return float(value) * (rank**0.5 if root else 1.0)

        yield alpha


def part_of(key: str) -> tuple[str, str]:
    """The layer and "down", "up" or "alpha" that a key names."""
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    stem = key.removesuffix(".weight")
    for ending, part in _PAIRS.items():
        if stem.endswith(ending):
            return stem.removesuffix(ending), part
    return key, ""
