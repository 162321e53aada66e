"""Other people's networks as a feature space for the metrics: Inception, DINOv2, CLIP, from files that are here.

see = sf.metrics.features("inception-2015-12-05.pt")       # or a folder of DINOv2's; or sf.metrics.clip("folder")
sf.metrics.frechet(see(samples), see(real), features=see.name)

A Frechet distance is called FID in the features of that Inception only (Heusel et al. 2017), and FD-DINOv2 in those of
DINOv2 (Stein et al. 2023); what each sees, its resizing included, is part of the number, and of `name`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import check_range
from suffuse.metrics.clip import Towers, crop_side, loaded, middle, normalised, prepared

__all__ = ["Features", "features"]

BATCH = 64


@dataclass(frozen=True, eq=False)
class Features:
    """Pictures as vectors.

    Attributes:
        name: what they are called in results. net: the network, to be moved to a device.
        see: images (B, 3, H, W) in [-1, 1] -> (B, D).
    """

    name: str
    net: Any
    see: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, 1 or 3, H, W) in [-1, 1], in float32; grey ones are seen in three channels.

        Raises:
            ValueError, TypeError: another shape, or values that were not scaled.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be (N, 1 or 3, H, W), got {tuple(images.shape)}")
        check_range(images, "images")
        parts = images.float().clamp(-1, 1).expand(-1, 3, -1, -1).split(BATCH)
        return torch.cat([self.see(part).float() for part in parts])


def features(source: str | Path | Towers) -> Features:
    """The feature space of a network that is here; nothing is downloaded.

    Args:
        source: a TorchScript file (.pt) that takes uint8 pictures and `return_features=True`, as NVIDIA's Inception
            does, which resizes by itself; a folder that transformers saved a vision model to, DINOv2 for one: pictures
            are resized and cropped as its preprocessor_config.json says, and the features are its pooled output; or
            the `Towers` of `clip`, whose features are its picture vectors before they are made unit.
    Raises:
        ValueError: neither of these; a model that lacks weights, pools nothing, or does not say its size.
        FileNotFoundError: a folder without weights in safetensors, or without the file on how pictures are prepared.
    """
    if isinstance(source, Towers):
        return Features(f"picture vectors of {source.name}", source.net, source.see)
    path = Path(os.fspath(source))
    if path.is_dir():
        return _of_folder(path)
    if path.is_file() and path.suffix == ".pt":
        net = torch.jit.load(path, map_location="cpu").eval()

        def see(images: Tensor) -> Tensor:
            return net(((images + 1) * 127.5).round().to(torch.uint8), return_features=True)

        return Features(path.stem, net, see)
    raise ValueError(f"features come from a folder or a TorchScript file (.pt) that is here, got {str(source)!r}")


def _of_folder(folder: Path) -> Features:
    settings = prepared(folder)
    net, _ = loaded("AutoModel", folder)
    net.requires_grad_(False)
    crop = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    size: Any = settings.get("size") or crop
    if size is None:
        raise ValueError(f"{folder} does not say to which size pictures are brought: its processor has no 'size'")
    edge = size if isinstance(size, int) else next(iter(size.values()))  # {"shortest_edge": 256}, {"height": 224, ...}
    side = crop_side(crop) or edge

    def see(images: Tensor) -> Tensor:
        found = net(pixel_values=normalised(middle(images, side, edge), settings))
        if getattr(found, "pooler_output", None) is None:
            raise ValueError(f"{folder} holds a {type(net).__name__}, which has no pooled output to take as features")
        return found.pooler_output

    return Features(f"{folder.name}, {edge} pixels, middle {side}", net, see)
