"""Other people's models as denoisers.

model = sf.hub.diffusers("stable-diffusion-v1-5", dtype=torch.bfloat16, device="cuda")
noise = sf.noise((4, *model.shape), seed=0, device="cuda")
z = sf.sample(sf.guide(model.given(text="a cat"), model, 7.5), noise, steps=20)
image = model.codec.decode(z)
"""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

import torch

from suffuse.denoise import Denoiser
from suffuse.hub.blocks import blocks
from suffuse.hub.clip import clip
from suffuse.hub.control import adapter, controlnet
from suffuse.hub.doctor import check
from suffuse.hub.export import to_diffusers, to_onnx
from suffuse.hub.folder import Folder
from suffuse.hub.lora import lora, save_lora
from suffuse.hub.research import load
from suffuse.hub.schedule import times
from suffuse.hub.scheduler import Scheduler
from suffuse.hub.split import split
from suffuse.hub.tensors import tensors

__all__ = [
    "Scheduler",
    "adapter",
    "blocks",
    "check",
    "clip",
    "controlnet",
    "diffusers",
    "load",
    "lora",
    "save_lora",
    "split",
    "tensors",
    "times",
    "to_diffusers",
    "to_onnx",
]

_FAMILIES = {
    "DDPMPipeline": "unet2d.load",
    "DDIMPipeline": "unet2d.load",
    "DiTPipeline": "dit.load",
    "FluxPipeline": "flux.load",
    "PixArtAlphaPipeline": "pixart.load",
    "PixArtSigmaPipeline": "pixart.load",
    "StableDiffusionPipeline": "stable_diffusion.load",
    "StableDiffusionXLPipeline": "stable_diffusion.load_xl",
    "StableDiffusion3Pipeline": "sd3.load",
}
_SAME = re.compile("(Img2Img|Inpaint|ControlNet|Adapter)(?=.*Pipeline$)")  # other loops around the same parts


def diffusers(
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    size: tuple[int, int] | None = None,
    offload: str | None = None,
    like: str | os.PathLike[str] | None = None,
) -> Denoiser:
    """A model saved in diffusers' pipeline format, as a denoiser.

    How the folder's scheduler samples (spacing, solver, clipping) is the sampler's and the grid's business here, and
    is not read; a safety checker is not run.

    Args:
        path: a local folder with a model_index.json, or the name of a model in the Hugging Face cache, such as
            "stabilityai/stable-diffusion-2-1"; nothing is ever downloaded. Or a checkpoint in one file, with `like`.
        dtype: of every network in it; None is float32. Text encoders and codec are frozen.
        device: where the networks go; None is the CPU.
        size: (height, width) in pixels; None is the size it was trained for. It sets `.shape` and, for models whose
            noise levels depend on the size (Flux), the schedule's shift.
        offload: what stays on the CPU until it is used: None (nothing), "parts" (text encoders and codec), or
            "layers" (also the network, a layer at a time: slow, and the smallest).
        like: for one file: a folder as above, whose configs and tokenizers say what it is. Parts that the file does
            not hold are read from there; its other weights are not looked at, and may be missing.
    Returns:
        A denoiser with `.shape` of one item (C, H, W), `.codec` (None where there are no latents) and the conditions
        of its family: `text=` (str, or a list with one a row), `label=`, `size=`, `guidance=`, `inpaint=`, `control=`.
    Raises:
        ModelFileError: a file or folder is missing, cut short, or a pickle; a weight is missing or unexpected.
        ValueError: a pipeline, part, schedule or prediction type that is not supported.
        ImportError: the extra is not installed.
    """
    folder = Folder(path, dtype or torch.float32, device, size, offload, like)
    kind = _SAME.sub("", folder.pipeline)
    if kind not in _FAMILIES:
        raise ValueError(f"{folder.path} is a {folder.pipeline}; supported are {', '.join(_FAMILIES)}")
    family, load = _FAMILIES[kind].split(".")
    model = getattr(importlib.import_module(f"suffuse.hub.{family}"), load)(folder)
    for part, steer in (("controlnet", controlnet), ("adapter", adapter)):
        if folder.has(part):
            model = steer(model, folder.part(part)[0])
    return model
