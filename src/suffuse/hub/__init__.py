"""Other people's models as denoisers.

model = sf.hub.diffusers("stable-diffusion-v1-5", dtype=torch.bfloat16, device="cuda")
noise = sf.noise((4, *model.shape), seed=0, device="cuda")
z = sf.sample(sf.guide(model.given(text="a cat"), model, 7.5), noise, steps=20)
image = model.codec.decode(z)
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch

from suffuse.hub.clip import clip
from suffuse.hub.folder import Folder, Pretrained

__all__ = ["Pretrained", "clip", "diffusers"]

_FAMILIES = {
    "DDPMPipeline": "unet2d",
    "DDIMPipeline": "unet2d",
    "StableDiffusionPipeline": "stable_diffusion",
}


def diffusers(path: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: Any = None) -> Pretrained:
    """A model saved in diffusers' pipeline format, as a denoiser.

    How the folder's scheduler samples (spacing, solver, clipping) is the sampler's and the grid's business here, and
    is not read; a safety checker is not run.

    Args:
        path: a local folder with a model_index.json; nothing is ever downloaded.
        dtype: of every network in it; None is float32. Text encoder and codec are frozen.
        device: where the networks go; None is the CPU.
    Returns:
        A denoiser with `.shape` of one item (C, H, W), `.codec` (None where there are no latents) and the conditions
        of its family: `text=` (str, or a list with one a row) for Stable Diffusion.
    Raises:
        ModelFileError: a file or folder is missing, cut short, or a pickle; a weight is missing or unexpected.
        ValueError: a pipeline, part, schedule or prediction type that is not supported.
        ImportError: the extra is not installed.
    """
    folder = Folder(path)
    if folder.pipeline not in _FAMILIES:
        raise ValueError(f"{folder.path} is a {folder.pipeline}; supported are {', '.join(_FAMILIES)}")
    family = importlib.import_module(f"suffuse.hub.{_FAMILIES[folder.pipeline]}")
    return family.load(folder, dtype or torch.float32, device)
