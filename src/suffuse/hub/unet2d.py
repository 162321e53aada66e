"""UNet2DModel: unconditional pixel models, as DDPMPipeline and DDIMPipeline save them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.export import opened
from suffuse.hub.folder import Folder, require
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


def load(folder: Folder) -> Denoiser:
    """The denoiser of a saved UNet2DModel and scheduler.

    Raises:
        ValueError: the network is told sigma instead of an index.
    """
    if folder.part("unet", "UNet2DModel", "Network")[1] == "Network":
        return opened(folder.path / "unet", folder.dtype, folder.device)
    unet = folder.network("unet", require("diffusers").UNet2DModel)
    if unet.config.time_embedding_type != "positional":
        raise ValueError(
            f"{folder.path}: a UNet2DModel must have time_embedding_type='positional', "
            f"got {unet.config.time_embedding_type!r}"
        )
    return folder.denoiser(UNet2D(unet), unet.config)
