"""Checkpoints in one file, with the names of the code that trained them: Stable Diffusion's, SD3's and Flux's.

What the file is say the configs of a folder, which has the tokenizers too; diffusers' converters rename the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse.hub.taps import with_sites
from suffuse.hub.tensors import tensors
from suffuse.training.files import ModelFileError

__all__ = ["read_part", "read_single"]

_PREFIXES = {  # how the keys of a part begin
    "unet": ("model.diffusion_model.",),
    "transformer": ("model.diffusion_model.", "double_blocks.", "single_blocks.", "joint_blocks."),
    "vae": ("first_stage_model.", "vae."),
    "clip": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "clip_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "t5": ("text_encoders.t5xxl.",),
}


def read_single(path: Path) -> dict[str, Tensor]:
    """The tensors of the file, by name; a pickle's are read without running it.

    Raises:
        ModelFileError: the file is missing or not whole, or holds more than tensors.
    """
    return {key.removeprefix("state_dict."): value for key, value in tensors(path).items()}


def read_part(
    checkpoint: Mapping[str, Tensor], path: Path, folder: Path, name: str, kind: Any, dtype: torch.dtype
) -> Any:
    """One part's network out of the file, in eval mode; None where the file does not hold this part.

    Args:
        checkpoint: what `read_single` read from path. folder: where the part's config.json is.
        name: of the part, such as "unet". kind: its class, of diffusers or transformers.
    Raises:
        ModelFileError: weights of the part are missing.
    """
    from diffusers.loaders import single_file_model, single_file_utils

    text = name.startswith("text_encoder")
    mark = "t5" if kind.__name__.startswith("T5") else name.replace("text_encoder", "clip") if text else name
    prefixes = _PREFIXES.get(mark, ())
    own: dict[str, Tensor] = {k: v for k, v in checkpoint.items() if k.startswith(prefixes)}
    if name == "transformer" and own and not any(k.startswith(prefixes[0]) for k in own):
        own = dict(checkpoint)  # a file of the transformer alone names its parts without a prefix
    if not own:
        return None
    where: dict[str, Any] = {"config": str(folder.parent), "subfolder": folder.name, "local_files_only": True}
    lost: list[str] = []
    try:
        if mark == "t5":
            net = single_file_utils.create_diffusers_t5_model_from_checkpoint(kind, own, **where)
        elif text:
            net = single_file_utils.create_diffusers_clip_model_from_ldm(kind, own, **where)
        else:
            config = kind.load_config(folder, local_files_only=True)
            rename: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES[kind.__name__]["checkpoint_mapping_fn"]
            net, found = kind.from_config(config), rename(config=config, checkpoint=own)
            lost = sorted(net.state_dict().keys() - found.keys())
            net.load_state_dict(found, strict=not lost)
    except (KeyError, AttributeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{path}: the {name} does not fit {folder / 'config.json'}: {error!s:.200}") from None
    if text:
        lost = [key for key, value in net.state_dict().items() if value.is_meta]
    if lost:
        raise ModelFileError(f"{path}: {len(lost)} weights of the {name} are missing, the first is {lost[0]}")
    return with_sites(net.to(dtype).eval())
