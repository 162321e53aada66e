"""UNet2DModel: unconditional pixel models, as DDPMPipeline and DDIMPipeline save them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from suffuse.hub.folder import Folder, Pretrained, require, square
from suffuse.nets.conditions import Label

__all__ = ["UNet2D", "load"]


class UNet2D(nn.Module):
    """(x, index, label) -> output, of x's shape; `label` where the network has classes."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet
        classes = unet.config.num_class_embeds
        self.conditions = {} if classes is None else {"label": Label(classes, optional=False)}

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.unet(x, t, class_labels=label, return_dict=False)[0]


def load(folder: Folder, dtype: torch.dtype, device: Any) -> Pretrained:
    """The denoiser of a saved UNet2DModel and scheduler.

    Raises:
        ValueError: the network is told sigma instead of an index, or predicts more than one image.
    """
    unet = folder.network("unet", require("diffusers").UNet2DModel, dtype, device)
    config = unet.config
    if config.time_embedding_type != "positional" or config.out_channels != config.in_channels:
        raise ValueError(
            f"{folder.path}: a UNet2DModel must have time_embedding_type='positional' and as many channels out as in, "
            f"got {config.time_embedding_type!r}, {config.in_channels} in and {config.out_channels} out"
        )
    return Pretrained(UNet2D(unet), folder, (config.in_channels, *square(config.sample_size)))
