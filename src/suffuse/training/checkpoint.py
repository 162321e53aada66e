"""Models in files: `model.json` says what to build, `model.safetensors` holds the weights. No pickle."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse import __version__, nets, schedules, zoo
from suffuse.denoise import Denoiser
from suffuse.parameterize import Parameterization, named
from suffuse.training.files import (
    ModelFileError,
    read_json,
    read_tensors,
    recover,
    whole_folder,
    write_json,
    write_tensors,
)
from suffuse.training.parallel import peers
from suffuse.training.sharded import copy_in

__all__ = ["ModelFileError", "load", "model_hash", "save"]

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


def _standard(parameterization: Parameterization) -> bool:
    """Whether its name alone brings it back."""
    try:
        known = named(parameterization.name)
    except ValueError:
        return False
    return known == parameterization or known.name.startswith("edm(")


def write_model(folder: Path, model: Denoiser) -> None:
    """Write the two files of a model into an existing folder."""
    if not isinstance(model.net, nn.Module):
        raise TypeError(f"only a torch module can be saved, got {type(model.net).__name__}")
    if not _standard(model.parameterization):
        raise TypeError(f"the parameterization {model.parameterization.name!r} is your own: it cannot be saved by name")
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "suffuse": __version__,
            "net": describe(model.net),
            "schedule": model.schedule.to_json(),
            "predicts": model.parameterization.name,
            "variance": model.variance,
        },
    )
    write_tensors(folder / "model.safetensors", model.net.state_dict())


def save(model: Denoiser, path: str | Path) -> None:
    """Write a model to a folder, whole or not at all; of several processes the first does, and the others wait.

    Raises:
        TypeError: the network is not a torch module.
    """
    team = peers()
    if team.first:
        with whole_folder(Path(path)) as folder:
            write_model(folder, model)
    team.word(None)


def load(path: str | Path, *, net: nn.Module | None = None) -> Denoiser:
    """Read a model from a folder, in eval mode.

    Args:
        path: a folder that `save` wrote, the folder of a run, or the name of a model that ships with suffuse, such as
            "shapes", where there is no such folder; the weights of these are stored in bf16 and used in float32.
        net: the network to fill, needed when it is not one of suffuse's own.
    Raises:
        ModelFileError: the folder or a file is missing, truncated, a pickle, or of another version; weights that
            are missing, unknown or of another shape.
    """
    path = Path(path)
    recover(path)
    ships = not path.exists() and zoo.has(path)
    path = zoo.path(str(path)) if ships else path
    if (path / "run.json").exists() and not (path / "model.json").exists():
        path = path / "model"
    if not path.is_dir():
        if path.is_file():
            read_tensors(path)  # a pickle or a broken file is named as what it is
        raise ModelFileError(f"no model folder at {path}")
    about = read_json(path / "model.json")
    if about.get("format") != FORMAT:
        raise ModelFileError(f"{path}/model.json has format {about.get('format')!r}, this suffuse reads {FORMAT}")
    missing = {"net", "schedule", "predicts"} - about.keys()
    if missing:
        raise ModelFileError(f"{path}/model.json does not say {', '.join(sorted(missing))}")
    tensors = read_tensors(path / "model.safetensors")
    net = build(about["net"]) if net is None else net
    kept = {v.dtype for v in tensors.values() if v.is_floating_point()}
    net = net.to(kept.pop()) if len(kept) == 1 and not ships else net
    fill(net, tensors, path / "model.safetensors")
    try:
        schedule = schedules.from_json(about["schedule"])
    except ValueError as error:
        raise ModelFileError(f"{path}/model.json: {error}") from None
    return Denoiser(net.eval(), schedule, about["predicts"], variance=about.get("variance"))


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


def model_hash(path: str | Path) -> str:
    """The first 16 hex digits of SHA-256 over a model folder's two files."""
    digest = hashlib.sha256()
    for name in ("model.json", "model.safetensors"):
        digest.update((Path(path) / name).read_bytes())
    return digest.hexdigest()[:16]
