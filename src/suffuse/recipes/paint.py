"""The texture of a mesh from a model of small squares: SyncTweedies with cameras for views.

Cameras see the mesh, windows of the model's size see the cameras' pictures; every window has a state of its own, and
all agree on x0 through the texture, each pixel weighted by how squarely its camera sees the surface there.

Kim et al. 2024 (SyncTweedies), section 5 (mesh texturing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse import fields, joint
from suffuse.fields import Camera, Mesh, Render
from suffuse.joint import Views
from suffuse.operators import Crop, Crops
from suffuse.random import noise

__all__ = ["paint", "windows_of"]


def windows_of(mesh: Mesh, cameras: Sequence[Camera], *, window: int, size: int, texture: int) -> Views:
    """Windows of what cameras see of a texture, with the weights of their pixels.

    Args:
        mesh: within distance 1 of the origin. window: their side in pixels; windows overlap by a half.
        size: of each camera's picture. texture: its side in texels.
    Raises:
        ValueError: pictures smaller than the window; no window sees the mesh.
    """
    corners = Crops(window, max(1, window // 2), (size, size)).corners
    seen, weights = [], []
    for camera in cameras:
        render = Render(mesh, camera, size, texture)
        for top, left in corners:
            weight = render.weight[top : top + window, left : left + window]
            if bool((weight > 0).any()):
                seen.append(Crop((top, left, window, window), (size, size)) @ render)
                weights.append(weight)
    if not seen:
        raise ValueError("no camera sees the mesh")
    return Views(seen, weights=torch.stack(weights)[:, None], holes=True)


def paint(
    model: Any, views: Views, shape: tuple[int, ...], *, steps: int, seed: int, chunk: int | None = None, **how: Any
) -> tuple[Tensor, float]:
    """A texture (C, R, R) that the model believes in from everywhere, and the share of its texels that were seen.

    Args:
        model: a denoiser of windows. views: of `windows_of`. shape: of one window. steps, seed, how: as `sf.sample`.
        chunk: how many windows are looked at together.
    """
    views.chunk = chunk
    z = noise((1, views.n or 1, *shape), seed)
    x = joint.sample(model, views, z, state="views", merge="x0", steps=steps, seed=seed, **how)[0]
    known = views.A.adjoint(torch.ones_like(z[:1]))[0, 0] > 0
    return fields.fill(x.clamp(-1, 1), known), known.float().mean().item()
