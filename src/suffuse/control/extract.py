"""Conditions read from pictures: what a control is told. Each is (B, 1, H, W) in [0, 1], from images in [-1, 1].

Depth, segmentation and keypoints of photographs need a network of their own: give its answer to `depth`, `masks` and
`skeleton`, which bring it into the form that controls take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.data.shapes.outlines import JOINTS

__all__ = ["BONES", "canny", "depth", "masks", "scribble", "skeleton", "soft_edges"]

BONES = ((1, 2), (1, 3), (3, 5), (2, 4), (4, 6), (7, 8), (7, 9), (9, 11), (8, 10), (10, 12), (1, 7), (2, 8))
"""Pairs of joints of a figure of the shapes world, in the order of its `JOINTS`."""


def canny(images: Tensor, *, sigma: float = 0.7, low: float = 0.2, high: float = 0.4) -> Tensor:
    """Edges one pixel wide, 0 or 1: Canny's on each channel by scikit-image, an edge where any channel has one.

    Args:
        images: (B, C, H, W) in [-1, 1]. sigma: of the blur, in pixels.
        low, high: thresholds on the gradient of values in [0, 1]; weak edges count where they touch strong ones.
    Raises:
        ValueError: another shape; not 0 <= low <= high.
        ModuleNotFoundError: scikit-image is not installed.

    Canny 1986.
    """
    images = _checked(images)
    if not 0 <= low <= high:
        raise ValueError(f"thresholds must be 0 <= low <= high, got {low} and {high}")
    try:
        from skimage.feature import canny as edges
    except ModuleNotFoundError:
        raise ModuleNotFoundError("canny needs scikit-image: pip install scikit-image") from None
    values = (images.detach().float().cpu() / 2 + 0.5).numpy()
    found: Any = [[edges(c, sigma=sigma, low_threshold=low, high_threshold=high) for c in image] for image in values]
    return torch.as_tensor(_any(found)).to(images)[:, None]


def _any(found: Any) -> Any:
    import numpy as np

    return np.asarray(found).any(1)


def soft_edges(images: Tensor, *, scale: float = 1.0) -> Tensor:
    """Strength of edges: |gradient| by Sobel's differences, the largest over channels, as 1 - exp(-scale |g|).

    Args:
        images: (B, C, H, W) in [-1, 1]. scale: larger shows weaker edges.
    """
    images = _checked(images).float()
    sobel = images.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    flat = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    gradient = F.conv2d(flat, torch.stack([sobel, sobel.mT])[:, None]).norm(dim=1)
    return 1 - (-4 * scale * gradient.view_as(images).amax(1, keepdim=True)).exp()


def scribble(edges: Tensor, *, width: int = 3) -> Tensor:
    """Edges as a thick pen draws them: the largest within `width` pixels, then averaged over as many.

    Args:
        edges: (B, 1, H, W) in [0, 1], from `canny` or `soft_edges`. width: odd.
    Raises:
        ValueError: an even width.
    """
    if width < 1 or width % 2 == 0:
        raise ValueError(f"width must be odd, got {width}")
    thick = F.max_pool2d(edges.float(), width, 1, width // 2)
    return F.avg_pool2d(thick, width, 1, width // 2, count_include_pad=False)


def depth(values: Tensor) -> Tensor:
    """Depth of any scale as a control takes it: each picture's from 0, the farthest, to 1, the nearest.

    Args:
        values: (B, 1, H, W), larger is nearer.
    """
    values = values.float()
    low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    return (values - low) / (high - low).clamp(min=1e-8)


def masks(values: Tensor, slots: int = 2) -> Tensor:
    """Masks of objects (B, K, H, W) as (B, slots, H, W) of which each pixel belongs to the first that covers it most.

    Raises:
        ValueError: more masks than slots.
    """
    if values.ndim != 4 or values.shape[1] > slots:
        raise ValueError(f"masks must be (B, K, H, W) with K at most {slots}, got {tuple(values.shape)}")
    found = F.pad(values.float().clamp(0, 1), (0, 0, 0, 0, 0, slots - values.shape[1]))
    first = found.argmax(1, keepdim=True)
    return torch.zeros_like(found).scatter(1, first, found.gather(1, first))


def skeleton(
    keypoints: Tensor, size: tuple[int, int], *, bones: Sequence[tuple[int, int]] = BONES, width: float = 1.2
) -> Tensor:
    """Keypoints as a stick figure: lines between joints, in three channels: left, right, and the rest with the head.

    Args:
        keypoints: (B, K, J, 2): x and y in pixels of J joints of K figures; NaN is not there.
        size: (H, W). bones: pairs of joints; those of the shapes world end in joints of odd number on the left.
        width: of the lines in pixels.
    Returns:
        (B, 3, H, W) in [0, 1].
    """
    if keypoints.ndim != 4 or keypoints.shape[-1] != 2:
        raise ValueError(f"keypoints must be (B, K, J, 2), got {tuple(keypoints.shape)}")
    height, wide = size
    y, x = torch.arange(height).view(-1, 1) + 0.5, torch.arange(wide).view(1, -1) + 0.5
    out = torch.zeros(len(keypoints), 3, height, wide)
    lines = [(a, b, _side(a, b)) for a, b in bones]
    lines += [(0, 0, 2)] if keypoints.shape[2] == len(JOINTS) else []
    for a, b, channel in lines:
        (ax, ay), (bx, by) = (keypoints[:, :, k].float().unbind(-1) for k in (a, b))
        ax, ay, bx, by = (v[..., None, None] for v in (ax, ay, bx, by))
        dx, dy = bx - ax, by - ay
        along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy).clamp(min=1e-8)).clamp(0, 1)
        away = ((x - ax - along * dx).square() + (y - ay - along * dy).square()).sqrt()
        line = (0.5 + width * (1.5 if a == b else 0.5) - away).clamp(0, 1).nan_to_num(0.0).amax(1)
        out[:, channel] = torch.maximum(out[:, channel], line)
    return out


def _side(a: int, b: int) -> int:
    return 2 if a % 2 != b % 2 else 0 if b % 2 else 1


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W), got {tuple(images.shape)}")
    return images
