"""Models of suffuse in diffusers' folder format, and networks as ONNX."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.folder import require
from suffuse.parameterize import named
from suffuse.schedules import Discrete, from_json
from suffuse.training.described import build, describe, fill
from suffuse.training.files import ModelFileError, read_json, read_tensors, whole_folder, write_json, write_tensors

__all__ = ["to_diffusers", "to_onnx"]

WEIGHTS = "diffusion_pytorch_model.safetensors"


def to_diffusers(
    model: Denoiser,
    path: str | os.PathLike[str],
    *,
    shape: tuple[int, ...] | None = None,
    table: Discrete | None = None,
    like: str | os.PathLike[str] | None = None,
) -> None:
    """Write a model so that `DiffusionPipeline.from_pretrained(path)` opens it and samples the same images.

    A network of suffuse is opened by `suffuse.hub.portable`, which another process has to import first (diffusers
    imports no module because a file names it, and says so). It is put on a table of betas exactly (`.on(table)`),
    whatever it was trained on, and answers eps, or v on a table that ends in pure noise. A network that came from
    diffusers is written as what it was, into a copy of its folder.

    Args:
        model: with a UNet or DiT of suffuse, or read by `sf.hub.diffusers`.
        path: the folder, written whole or not at all.
        shape: of one item, (C, H, W), where the model does not say.
        table: the betas; by default its own, or DDPM's for a model that has none.
        like: for a network from diffusers: the folder it was read from.
    Raises:
        ValueError: no shape; no folder to copy for a network from diffusers.
        TypeError: a network that is neither.
    """
    net: Any = model.net
    inner = next(
        (name for name in ("unet", "transformer") if hasattr(getattr(net, name, None), "save_pretrained")), None
    )
    if inner is not None:
        if like is None:
            raise ValueError(f"{type(net).__name__} came from diffusers: say like= with the folder it was read from")
        with whole_folder(Path(path)) as folder:
            shutil.copytree(
                like, folder, dirs_exist_ok=True, ignore=lambda d, names: [inner] if Path(d) == Path(like) else []
            )
            getattr(net, inner).save_pretrained(folder / inner)
        return
    about = describe(net)
    if "args" not in about:
        raise TypeError(f"{type(net).__name__} is no network of suffuse: only UNet, DiT and MLP can be written")
    shape = shape or model.shape
    if shape is None:
        raise ValueError("say the shape of one item: shape=(1, 8, 8)")
    table = table or (model.schedule if isinstance(model.schedule, Discrete) else Discrete.ddpm())
    ends = table(1.0)[0] == 0
    version = require("diffusers").__version__
    importlib.import_module("suffuse.hub.portable")  # in this process it opens without more
    with whole_folder(Path(path)) as folder:
        (folder / "unet").mkdir()
        (folder / "scheduler").mkdir()
        write_json(
            folder / "model_index.json",
            {
                "_class_name": "DDIMPipeline",
                "_diffusers_version": version,
                "unet": ["suffuse.hub.portable", "Network"],
                "scheduler": ["diffusers", "DDIMScheduler"],
            },
        )
        write_json(
            folder / "unet" / "config.json",
            {
                "_class_name": "Network",
                "_diffusers_version": version,
                "net": about,
                "schedule": model.schedule.to_json(),
                "predicts": model.parameterization.name,
                "variance": model.variance,
                "table": table.to_json(),
                "in_channels": shape[0],
                "sample_size": list(shape[1:]),
            },
        )
        write_tensors(
            folder / "unet" / WEIGHTS, {f"network.{k}": v for k, v in net.state_dict().items()}, {"format": "pt"}
        )
        write_json(
            folder / "scheduler" / "scheduler_config.json",
            {
                "_class_name": "DDIMScheduler",
                "_diffusers_version": version,
                "num_train_timesteps": table.steps,
                "trained_betas": list(table.betas),
                "clip_sample": False,
                "set_alpha_to_one": True,
                "prediction_type": "v_prediction" if ends else "epsilon",
                "timestep_spacing": "trailing" if ends else "leading",
            },
        )


def opened(folder: Path, dtype: torch.dtype = torch.float32, device: Any = None) -> Denoiser:
    """The denoiser that `to_diffusers` wrote: on the schedule it was trained on."""
    about = read_json(folder / "config.json")
    missing = {"net", "schedule", "predicts", "in_channels", "sample_size"} - about.keys()
    if missing:
        raise ModelFileError(f"{folder / 'config.json'} does not say {', '.join(sorted(missing))}")
    net = build(about["net"])
    found = read_tensors(folder / WEIGHTS)
    fill(net, {k.removeprefix("network."): v for k, v in found.items()}, folder / WEIGHTS)
    schedule, predicts = from_json(about["schedule"]), named(about["predicts"])
    shape = (about["in_channels"], *about["sample_size"])
    return Denoiser(net.to(device, dtype).eval(), schedule, predicts, variance=about.get("variance"), shape=shape)


class _Named(nn.Module):
    """A network whose conditions come in a fixed order."""

    def __init__(self, net: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x: Tensor, t: Tensor, *told: Tensor) -> Tensor:
        return self.net(x, t, **dict(zip(self.names, told, strict=True)))


def to_onnx(model: Denoiser, file: str | os.PathLike[str], *, shape: tuple[int, ...] | None = None) -> list[str]:
    """Write the network (not the sampler) as ONNX, for any number of rows.

    Args:
        model: its network and what it may be told. file: ending in .onnx.
        shape: of one item, where the model does not say.
    Returns:
        The names of the inputs: "x", "t" (what the parameterization tells the network), and one for every condition.
    Raises:
        ValueError: no shape. TypeError: the network is no torch module, or a condition is several tensors.
        ImportError: the extra is not installed.
    """
    for library in ("onnx", "onnxscript"):
        require(library)
    shape = shape or model.shape
    if shape is None:
        raise ValueError("say the shape of one item: shape=(1, 8, 8)")
    if not isinstance(model.net, nn.Module):
        raise TypeError(f"only a torch module can be written as ONNX, got {type(model.net).__name__}")
    x = torch.zeros(2, *shape, dtype=next(model.net.parameters()).dtype, device=next(model.net.parameters()).device)
    told = model.told(x)
    several = [name for name, value in told.items() if isinstance(value, dict)]
    if several:
        raise TypeError(f"{several[0]!r} is told in several tensors, which an ONNX input cannot be")
    names = ["x", "t", *told]
    inputs = (x, torch.full((2,), 0.5, device=x.device), *(v.clone() for v in told.values()))
    rows = torch.export.Dim("rows", min=1)
    shapes = {"x": {0: rows}, "t": {0: rows}, "told": tuple({0: rows} for _ in told)}
    net: Any = _Named(model.net, list(told)).eval()
    how: dict[str, Any] = {"input_names": names, "output_names": ["output"], "dynamo": True, "verbose": False}
    with torch.no_grad():
        if "args" in describe(model.net):  # ours: read strictly, where `len(x)` stays any number; running it fixes it
            net = torch.export.export(net, inputs, dynamic_shapes=shapes, strict=True)
            torch.onnx.export(net, (), str(file), **how)
        else:
            torch.onnx.export(net, inputs, str(file), dynamic_shapes=shapes, **how)
    return names
