"""Folders in diffusers' pipeline format: read from disk only, safetensors only, and every missing file is named."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from suffuse.denoise import Denoiser
from suffuse.hub.autoencoder import KLCodec
from suffuse.hub.schedule import read_schedule
from suffuse.hub.single import read_part, read_single
from suffuse.hub.taps import with_sites
from suffuse.training.files import ModelFileError, read_json

__all__ = ["Folder", "require"]


def require(library: str) -> Any:
    """Someone else's library, or an ImportError that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"{library} cannot be imported ({error}): pip install 'suffuse[hub]'") from error


class Folder:
    """A saved pipeline: model_index.json, and one folder a part.

    Classes are never imported by a name that stands in a file: a family asks for the parts it knows.

    Args:
        path: the folder, or the name of a model in the Hugging Face cache.
        dtype, device: of the networks.
        size: (height, width) in pixels that is wanted; None is the size it was trained for.
        offload: what waits on the CPU until it is used: None, "parts" or "layers".
        like: the folder that says what path is, where that is a checkpoint in one file.
    Attributes:
        pipeline: the name of the pipeline's class.
    Raises:
        ModelFileError: the folder or its model_index.json is missing or is not JSON; a link leads out of it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        size: tuple[int, int] | None = None,
        offload: str | None = None,
        like: str | os.PathLike[str] | None = None,
    ) -> None:
        if offload not in (None, "parts", "layers"):
            raise ValueError(f"offload must be None, 'parts' or 'layers', got {offload!r}")
        self.file = Path(path) if Path(path).is_file() or like is not None else None
        if self.file is not None and like is None:
            raise ValueError(f"{path} is one file: say like= with a folder whose configs and tokenizers fit it")
        source = path if like is None else like
        self.path = Path(source) if Path(source).is_dir() else _cached(source)
        self.dtype, self.device, self.size, self.offload = dtype, device, size, offload
        _check_links(self.path)
        self.index = read_json(self.path / "model_index.json")
        if not isinstance(self.index, dict):
            raise ModelFileError(f"{self.path / 'model_index.json'} should hold a JSON object")
        self.pipeline = str(self.index.get("_class_name"))
        self.checkpoint = {} if self.file is None else read_single(self.file)

    def has(self, name: str) -> bool:
        """Whether the pipeline was saved with this part."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def part(self, name: str, *kinds: str) -> tuple[Path, str]:
        """The folder of a part and its class's name, which is one of `kinds` if those are given."""
        entry = self.index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found is None or (kinds and found not in kinds):
            raise ValueError(f"{self.path}: the {name} is {found}, supported is {kinds[0] if kinds else 'a scheduler'}")
        folder = self.path / name
        if not folder.is_dir():
            raise ModelFileError(f"{folder} is missing")
        return folder, found

    def network(self, name: str, kind: type, *also: str, dtype: torch.dtype | None = None) -> Any:
        """A part's network in eval mode, every weight accounted for.

        Args:
            name: of the part. kind: its class. also: older names of the class. dtype: if not that of all.
        Raises:
            ModelFileError: files are missing, cut short or pickles; weights are missing or unexpected.
        """
        folder, _ = self.part(name, kind.__name__, *also)
        dtype, net = dtype or self.dtype, None
        if self.file is not None:
            net = read_part(self.checkpoint, self.file, folder, name, kind, dtype)
        if net is None:
            net = read_network(folder, kind, dtype)
        return net if self.offload else net.to(self.device)

    def codec(self) -> KLCodec:
        """The autoencoder as a codec, frozen; in float32 where its config says that float16 overflows."""
        kind = require("diffusers").AutoencoderKL
        wide = self.dtype == torch.float16 and read_json(self.part("vae")[0] / "config.json").get("force_upcast", True)
        net = self.network("vae", kind, dtype=torch.float32 if wide else None).requires_grad_(False)
        return KLCodec(net, device=self.device if self.offload else None)

    def latent(self, trained: Any, factor: int, patch: int = 1) -> tuple[int, ...]:
        """(H, W) of the latents: of `size`, or as trained (a number, a pair, or None where the config does not say).

        Raises:
            ValueError: `size` is not a multiple of what a latent patch covers.
        """
        if self.size is None:
            return (trained, trained) if isinstance(trained, int) else tuple(trained or ())
        if any(n < 1 or n % (factor * patch) for n in self.size):
            raise ValueError(f"size must be (height, width) in multiples of {factor * patch} pixels, got {self.size}")
        return tuple(n // factor for n in self.size)

    def denoiser(self, net: nn.Module, config: Any, codec: KLCodec | None = None, patch: int = 1) -> Denoiser:
        """The family's network on the folder's schedule.

        Args:
            net: `net(x, t, **conditions)`, told the index of t or a flow's sigma, with `.conditions`.
            config: of the network, which says channels and size; or the shape of one item.
            patch: latents per token and side, which a flow's time shift may depend on.
        Raises:
            ValueError: the network answers neither as many channels as it is given nor twice as many.
        """
        if isinstance(config, tuple):
            shape, out = config, config[0]
        else:
            factor = 1 if codec is None else codec.factor
            shape = (config.in_channels, *self.latent(config.sample_size, factor, patch))
            out = config.get("out_channels") or shape[0]
        if out not in (shape[0], 2 * shape[0]):
            raise ValueError(f"{self.path}: a network with {shape[0]} channels in and {out} out is not supported")
        folder, kind = self.part("scheduler")
        tokens = shape[1] * shape[2] // patch**2 if len(shape) == 3 else None
        schedule, predicts = read_schedule(folder / "scheduler_config.json", kind, require("diffusers"), tokens)
        if self.offload == "layers":
            require("accelerate").cpu_offload(net, self.device)
        elif self.offload:
            net.to(self.device)
        variance = "range" if out == 2 * shape[0] else None
        return Denoiser(net, schedule, predicts, variance=variance, shape=shape, codec=codec)


def read_network(folder: Path, kind: type, dtype: torch.dtype) -> Any:
    """A network of diffusers or transformers from its own folder, in eval mode, every weight accounted for."""
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise ValueError(f"{folder / 'config.json'}: quantised weights are not supported")
    _check_weights(folder, "model" if kind.__module__.startswith("transformers.") else "diffusion_pytorch_model")
    net, report = kind.from_pretrained(  # type: ignore[attr-defined]
        folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True
    )
    for what in ("missing", "unexpected"):
        keys = sorted(report[f"{what}_keys"])
        if keys:
            raise ModelFileError(f"{folder}: {len(keys)} weights are {what}, the first is {keys[0]}")
    return with_sites(net.eval())


def _cached(name: Any) -> Path:
    """The folder of a model in the Hugging Face cache."""
    text, hint = os.fspath(name), "give a local folder with a model_index.json"
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        hub = require("huggingface_hub")
        try:
            return Path(hub.snapshot_download(text, local_files_only=True))
        except Exception as error:  # whatever it says: it is not there
            raise ModelFileError(
                f"{text} is neither a folder nor in the Hugging Face cache; nothing is downloaded here: "
                f"`hf download {text}` fetches it, or {hint}"
            ) from error
    raise ModelFileError(f"{text} is missing: {hint}")


def _check_links(folder: Path) -> None:
    """Links may lead within the folder or, in the Hugging Face cache, within the cached model."""
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise ModelFileError(f"{path} is a link out of the folder, to {path.resolve()}: copy the file there")


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
