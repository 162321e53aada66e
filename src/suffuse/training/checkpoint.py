"""Models in files: `model.json` says what to build, `model.safetensors` holds the weights. No pickle.

The codec of a model of latents lies beside them, in `codec/`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from suffuse import __version__, schedules, zoo
from suffuse.denoise import Denoiser
from suffuse.nets import LatentCodec
from suffuse.parameterize import Parameterization, named
from suffuse.training.codecs import load_codec, write_codec
from suffuse.training.described import FORMAT, build, describe, fill
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

__all__ = ["ModelFileError", "load", "model_hash", "save"]


def _standard(parameterization: Parameterization) -> bool:
    """Whether its name alone brings it back."""
    try:
        known = named(parameterization.name)
    except ValueError:
        return False
    return known == parameterization or known.name.startswith("edm(")


def write_model(folder: Path, model: Denoiser) -> None:
    """Write the files of a model into an existing folder; a codec goes along if it is a `LatentCodec`."""
    if not isinstance(model.net, nn.Module):
        raise TypeError(f"only a torch module can be saved, got {type(model.net).__name__}")
    if isinstance(getattr(model.net, "controls", None), nn.ModuleDict) and "args" not in describe(model.net):
        raise TypeError(
            f"a {type(model.net).__name__} is no model of its own: write its control by sf.control.save_control, which "
            "is attached to the saved base again"
        )
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
        }
        | ({"shape": list(model.shape)} if model.shape else {}),
    )
    write_tensors(folder / "model.safetensors", model.net.state_dict())
    if isinstance(model.codec, LatentCodec):
        (folder / "codec").mkdir()
        write_codec(folder / "codec", model.codec)


def save(model: Denoiser, path: str | Path) -> None:
    """Write a model to a folder, whole or not at all; of several processes the first does, and the others wait.

    Raises:
        TypeError: the network is not a torch module; it has controls, which `sf.control.save_control` writes.
    """
    team = peers()
    if team.first:
        with whole_folder(Path(path)) as folder:
            write_model(folder, model)
    team.word(None)


def load(path: str | Path, *, net: nn.Module | None = None) -> Denoiser:
    """Read a model from a folder, in eval mode; its shape is what was saved with it, else that of the run.

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
    shape = None
    if (path / "run.json").exists() and not (path / "model.json").exists():
        shape, path = read_json(path / "run.json").get("shape"), path / "model"
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
    codec = load_codec(path / "codec") if (path / "codec").is_dir() else None
    shape = tuple(about.get("shape") or shape or ()) or None
    return Denoiser(net.eval(), schedule, about["predicts"], variance=about.get("variance"), shape=shape, codec=codec)


def model_hash(path: str | Path) -> str:
    """The first 16 hex digits of SHA-256 over a model folder's files."""
    digest, path = hashlib.sha256(), Path(path)
    for name in ("model.json", "model.safetensors", "codec/codec.json", "codec/codec.safetensors"):
        if name.startswith("model") or (path / name).exists():
            digest.update((path / name).read_bytes())
    return digest.hexdigest()[:16]
