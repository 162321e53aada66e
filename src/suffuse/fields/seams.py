"""Seams of a painted mesh: how much the texture jumps where two of its charts meet on the surface.

For the edges that two triangles share, the mean of |c(p) - c(q)|, p and q on either side, `gap` apart on the surface:
over edges where the charts change, and over the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.fields.mesh import Mesh

__all__ = ["seams"]


def seams(mesh: Mesh, texture: Tensor, *, gap: float, spacing: float | None = None) -> tuple[float, float]:
    """The mean jump across seams, and across edges within charts.

    Args:
        texture: (3, R, R), its first row the top. gap: from p to q, in units of the mesh: about a pixel as it is seen.
        spacing: of the places along an edge, by default the gap.
    Raises:
        ValueError: a mesh without edges of either kind.
    """
    spacing = gap if spacing is None else spacing
    sides: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for f, corners in enumerate(mesh.faces.tolist()):
        for k in range(3):
            a, b = corners[k], corners[(k + 1) % 3]
            sides.setdefault((min(a, b), max(a, b)), []).append((f, k))
    shared = [(edge, found) for edge, found in sides.items() if len(found) == 2]
    ends = torch.tensor([edge for edge, _ in shared]).reshape(-1, 2)
    if not shared:
        raise ValueError(f"{mesh!r} has no edge that two triangles share")
    sides_of = [[_side(mesh, found[k], ends[i], gap / 2) for i, (_, found) in enumerate(shared)] for k in (0, 1)]
    start, inwards, low, high = (
        torch.stack([torch.stack([one[k] for one in side]) for side in sides_of]) for k in range(4)
    )
    open_ = (start[0] - start[1]).abs().amax((1, 2)) > 1e-6  # uv of the ends differ: charts change here
    length = (mesh.vertices[ends[:, 1]] - mesh.vertices[ends[:, 0]]).norm(dim=1)
    count = (length / spacing).round().long().clamp(min=1)
    which = torch.arange(len(count)).repeat_interleave(count)
    share = torch.cat([(torch.arange(n) + 0.5) / n for n in count.tolist()])
    low, high = low.amax(0)[which], high.amin(0)[which]  # within both triangles, where there is such a place
    share = torch.where(low < high, low + (high - low) * share, 0.5)[:, None]
    uv = torch.lerp(start[:, which, 0], start[:, which, 1], share) + inwards[:, which]
    grid = torch.stack([2 * uv[..., 0] - 1, 1 - 2 * uv[..., 1]], -1)
    colour = torch.nn.functional.grid_sample(
        texture[None].float().expand(2, -1, -1, -1), grid[:, None], align_corners=False, padding_mode="border"
    )[:, :, 0]
    jump = (colour[0] - colour[1]).abs().mean(0)
    at = open_[which]
    if not bool(at.any()) or bool(at.all()):
        raise ValueError(f"{mesh!r} has {'only' if bool(at.all()) else 'no'} edges at which charts change")
    return jump[at].mean().item(), jump[~at].mean().item()


def _side(mesh: Mesh, side: tuple[int, int], ends: Tensor, depth: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """uv of an edge's ends, (2, 2); the step in uv that leads `depth` inside; between which shares it stays there."""
    face, k = side
    order = [k, (k + 1) % 3, (k + 2) % 3]
    corner, uv = mesh.faces[face][order], mesh.uv[mesh.face_uv[face][order]]
    if int(corner[0]) != int(ends[0]):
        corner, uv = corner[[1, 0, 2]], uv[[1, 0, 2]]
    a, b, c = mesh.vertices[corner]
    foot = ((c - a) @ (b - a) / (b - a).square().sum().clamp(min=1e-12)).clamp(-10, 10)
    height = (c - a - foot * (b - a)).norm().clamp(min=1e-12)
    part = (depth / height).clamp(max=0.5)
    inwards = part * (uv[2] - uv[0] - foot * (uv[1] - uv[0]))
    return uv[:2], inwards, (part * foot).clamp(min=0), (1 - part * (1 - foot)).clamp(max=1)
