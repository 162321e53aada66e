"""Controls in files: what is learned, and how it was made, without the weights of the model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from suffuse.adapters.words import Grown
from suffuse.control.concatenated import concatenated
from suffuse.control.controlnet import controlnet
from suffuse.control.ip import ip_adapter
from suffuse.control.steered import Steered
from suffuse.control.t2i import t2i_adapter
from suffuse.denoise import Denoiser
from suffuse.hub.lora import LowRank
from suffuse.training.files import ModelFileError, read_json, read_tensors, whole_folder, write_json, write_tensors

__all__ = ["load_control", "save_control"]

_MAKE = {"controlnet": controlnet, "t2i": t2i_adapter, "concatenated": concatenated, "ip": ip_adapter}


def save_control(model: Denoiser, path: str | os.PathLike[str]) -> None:
    """Write the control that was attached last: a folder with control.json and control.safetensors.

    Raises:
        TypeError: the model has no control.
    """
    net: Any = model.net
    if not isinstance(net, Steered):
        raise TypeError(f"{type(net).__name__} has no control to write")
    name = list(net.controls)[-1]
    control: Any = net.controls[name]
    about = {
        "format": 1,
        "kind": control.kind,
        "name": name,
        "arguments": control.arguments,
        "steps": control.route.steps,
    }
    with whole_folder(Path(path)) as folder:
        write_json(folder / "control.json", about)
        write_tensors(folder / "control.safetensors", dict(_learned(model, name)))


def load_control(
    model: Denoiser, path: str | os.PathLike[str], *, name: str | None = None, x: Tensor | None = None, **more: Any
) -> Denoiser:
    """A model with a control that `save_control` wrote.

    Args:
        model: as it was then, or one whose first half has the same shapes. path: the folder.
        name: of the condition, by default the one it was written under. x: as for `controlnet`.
        more: what no file holds: `encode=` and `example=` of an IP-Adapter.
    Raises:
        ModelFileError: no control; one that was made for another model, with what does not fit.
    """
    path = Path(path)
    about = read_json(path / "control.json")
    if about.get("format") != 1 or about.get("kind") not in _MAKE:
        raise ModelFileError(f"{path}/control.json is of another version: format {about.get('format')!r}")
    called: str = about["name"] if name is None else name
    given = {k: v for k, v in about["arguments"].items() if k != "factor"} | more
    new = _MAKE[about["kind"]](model, **given, name=called, x=x)
    control: Any = new.net.controls[called]  # type: ignore[attr-defined]
    if list(control.route.steps) != list(about["steps"]):
        raise ModelFileError(
            f"{path} was made for another model: it steers {', '.join(about['steps'])}, and here x goes through "
            f"{', '.join(control.route.steps)}"
        )
    own, theirs = _learned(new, called), read_tensors(path / "control.safetensors")
    wrong = [k for k in {**own, **theirs} if k not in own or k not in theirs or own[k].shape != theirs[k].shape]
    if wrong:
        first = wrong[0]
        shapes = [tuple(part[first].shape) if first in part else "none" for part in (theirs, own)]
        raise ModelFileError(
            f"{path} was made for another model: {len(wrong)} of its weights do not fit, {first} has the shape "
            f"{shapes[0]} in the file and {shapes[1]} here"
        )
    for key, value in own.items():
        value.data.copy_(theirs[key])
    return new


def _learned(model: Denoiser, name: str) -> dict[str, Tensor]:
    """What the control learns, with its name left out; not what was attached beside it since."""
    net: Any = model.net
    found: dict[str, Tensor] = {}
    for path, weight in net.named_parameters():
        learned = net.controls[name].learned
        path = path if path in learned else _unwrapped(net, path)
        if path in learned:
            found[path.replace(".", "/").replace(f"controls/{name}/", "control/")] = weight
    return found


def _unwrapped(net: Any, path: str) -> str:
    """The name that a weight had before a LoRA or a new word was put around its layer."""
    kept = []
    for part in path.split("."):
        around = (isinstance(net, LowRank) and part == "layer") or (isinstance(net, Grown) and part == "old")
        kept += [] if around else [part]
        net = getattr(net, part)
    return ".".join(kept)
