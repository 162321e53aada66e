"""How well pictures obey a control: edges where they were asked for, joints where they were asked for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["edge_f1", "joint_error"]


def edge_f1(found: Tensor, wanted: Tensor, *, tolerance: int = 1) -> Tensor:
    """Agreement of two edge maps: 2 P R / (P + R).

    P is the share of found edges within `tolerance` pixels of a wanted one, R that of wanted within as many of a found.

    Args:
        found, wanted: (B, 1, H, W), edges where it is above 1/2. tolerance: in pixels, along rows and columns.
    Returns:
        (B,) in [0, 1]; 1 where neither has an edge.
    Raises:
        ValueError: other shapes.

    Martin et al. 2004, section 3, with near pixels in place of a matching.
    """
    if found.shape != wanted.shape or found.ndim != 4 or found.shape[1] != 1:
        raise ValueError(f"edge maps must both be (B, 1, H, W), got {tuple(found.shape)} and {tuple(wanted.shape)}")
    a, b = (found > 0.5).float(), (wanted > 0.5).float()
    near_a, near_b = (F.max_pool2d(v, 2 * tolerance + 1, 1, tolerance) for v in (a, b))

    def share(hits: Tensor, of: Tensor) -> Tensor:
        n = of.flatten(1).sum(1)
        return torch.where(n > 0, hits.flatten(1).sum(1) / n.clamp(min=1), 1.0)

    p, r = share(a * near_b, a), share(b * near_a, b)
    p = torch.where((a.flatten(1).sum(1) == 0) & (b.flatten(1).sum(1) > 0), 0.0, p)
    r = torch.where((b.flatten(1).sum(1) == 0) & (a.flatten(1).sum(1) > 0), 0.0, r)
    return torch.where(p + r > 0, 2 * p * r / (p + r).clamp(min=1e-12), 0.0)


def joint_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean distance of joints in pixels, by figure: (..., J, 2), (..., J, 2) -> (...)."""
    return (found - wanted).square().sum(-1).sqrt().mean(-1)
