"""Folders in diffusers' pipeline format: read from disk only, safetensors only, and every missing file is named."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from suffuse.codec import Codec
from suffuse.denoise import Denoiser
from suffuse.hub.schedule import read_schedule
from suffuse.training.files import ModelFileError, read_json

__all__ = ["Folder", "Pretrained", "require"]


class Pretrained(Denoiser):
    """A published network read as a denoiser.

    Args:
        net: the family's adapter: `net(x, t, **conditions)`, told the index of t, with `.conditions`.
        folder: where it came from; its scheduler says schedule and parameterization.
        shape: of one item, (C, H, W), at the size it was trained for; (C,) where the config does not say.
        codec: from images to what it denoises; None where it denoises images.
    """

    def __init__(self, net: nn.Module, folder: Folder, shape: tuple[int, ...], codec: Codec | None = None) -> None:
        super().__init__(net, *folder.schedule())
        self.shape, self.codec = shape, codec


def require(library: str) -> Any:
    """Someone else's library, or an ImportError that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"{library} cannot be imported ({error}): pip install 'suffuse[hub]'") from error


def square(sample_size: Any) -> tuple[int, ...]:
    """(H, W) of a config's sample_size, which may be one number, or none at all."""
    return (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size or ())


class Folder:
    """A saved pipeline: model_index.json, and one folder a part.

    Classes are never imported by a name that stands in a file: a family asks for the parts it knows.

    Args:
        path: the folder.
    Attributes:
        pipeline: the name of the pipeline's class.
    Raises:
        ModelFileError: the folder or its model_index.json is missing or is not JSON.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ModelFileError(f"{self.path} is missing: give a local folder with a model_index.json")
        self.index = read_json(self.path / "model_index.json")
        if not isinstance(self.index, dict):
            raise ModelFileError(f"{self.path / 'model_index.json'} should hold a JSON object")
        self.pipeline = self.index.get("_class_name")

    def part(self, name: str, kind: str | None = None) -> tuple[Path, str]:
        """The folder of a part and its class's name, which is `kind` if that is given."""
        entry = self.index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found is None or kind not in (None, found):
            raise ValueError(f"{self.path}: the {name} is {found}, supported is {kind or 'one of diffusers'}")
        folder = self.path / name
        if not folder.is_dir():
            raise ModelFileError(f"{folder} is missing")
        return folder, found

    def schedule(self) -> tuple[Any, Any]:
        """The schedule and parameterization of the scheduler's config."""
        folder, kind = self.part("scheduler")
        return read_schedule(folder / "scheduler_config.json", kind, require("diffusers"))

    def network(self, name: str, kind: type, dtype: torch.dtype, device: Any) -> Any:
        """A part's network in eval mode, every weight accounted for.

        Raises:
            ModelFileError: files are missing, cut short or pickles; weights are missing or unexpected.
        """
        folder, _ = self.part(name, kind.__name__)
        read_json(folder / "config.json")
        _check_weights(folder, "model" if kind.__module__.startswith("transformers.") else "diffusion_pytorch_model")
        net, report = kind.from_pretrained(  # type: ignore[attr-defined]
            folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True
        )
        for what in ("missing", "unexpected"):
            keys = sorted(report[f"{what}_keys"])
            if keys:
                raise ModelFileError(f"{folder}: {len(keys)} weights are {what}, the first is {keys[0]}")
        return net.to(device).eval()


def _check_weights(folder: Path, stem: str) -> None:
    from safetensors import SafetensorError, safe_open

    index, files = folder / f"{stem}.safetensors.index.json", [f"{stem}.safetensors"]
    if index.exists():
        files = sorted(set(read_json(index)["weight_map"].values()))
    elif not (folder / files[0]).exists():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth"))
        if pickles:
            raise ModelFileError(
                f"{folder} holds {pickles[0]}, a pickle, which can run code when it is read, and no {files[0]}: "
                "save it again as safetensors"
            )
        others = ", ".join(sorted(p.name for p in folder.glob("*.safetensors")))
        raise ModelFileError(f"{folder / files[0]} is missing" + (f" (there is {others})" if others else ""))
    for name in files:
        if Path(name).name != name:
            raise ModelFileError(f"{index} names {name}, which is not a file of its own folder")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except FileNotFoundError:
            raise ModelFileError(f"{folder / name} is missing") from None
        except SafetensorError as error:
            raise ModelFileError(f"{folder / name} is not a whole safetensors file: {error}") from None
