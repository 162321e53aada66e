"""A small rasteriser in tensor operations: what a camera sees of a mesh, and its pictures as a linear operator.

A pixel's ray meets the plane of a triangle at barycentric (b_0, b_1, b_2) of the projected triangle; depth and texture
coordinates follow perspective:  1/z = sum b_i / z_i,   uv = z sum b_i uv_i / z_i.

What a picture shows of a texture is a table: each pixel reads one texel (nearest), or four (bilinear).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from suffuse.fields.mesh import Mesh
from suffuse.operators.rays import Sparse

__all__ = ["Camera", "Render", "Seen", "fill", "orbit", "rasterise", "shade"]

BAND = 8  # rows of pixels looked at together: few triangles meet them


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole.

    Attributes:
        eye: (3,) where it is. axes: (3, 3) its right, up and backward axes, as rows.
        focal: focal length in heights of the picture.
    """

    eye: Tensor
    axes: Tensor
    focal: float

    @classmethod
    def look(cls, azimuth: float, elevation: float = 15.0, *, distance: float = 3.0, field: float = 42.0) -> Camera:
        """One that looks at the origin, with y up.

        Args:
            azimuth, elevation: in degrees; azimuth 0 looks from +z, 90 from +x. distance: from the origin.
            field: of view, in degrees, top to bottom.
        """
        a, e = math.radians(azimuth), math.radians(elevation)
        back = torch.tensor([math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)])
        right = torch.tensor([math.cos(a), 0.0, -math.sin(a)])
        axes = torch.stack([right, torch.linalg.cross(back, right), back])
        return cls(distance * back, axes, 0.5 / math.tan(math.radians(field) / 2))


def orbit(n: int, *, elevations: tuple[float, ...] = (20.0, -20.0), start: float = 0.0) -> list[Camera]:
    """n cameras evenly around the up axis, their elevations (degrees) taken in turn.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"an orbit needs at least 1 camera, got {n}")
    return [Camera.look(start + 360 * k / n, elevations[k % len(elevations)]) for k in range(n)]


@dataclass(frozen=True, eq=False)
class Seen:
    """What each pixel of a picture (H, W) sees.

    Attributes:
        face: (H, W) number of the triangle, -1 for none. uv: (H, W, 2).
        facing: (H, W) the cosine between the triangle's normal and the ray to the camera, 0 for none.
    """

    face: Tensor
    uv: Tensor
    facing: Tensor


def rasterise(mesh: Mesh, camera: Camera, size: int) -> Seen:
    """What a square picture of size x size pixels shows, hidden surfaces removed.

    Raises:
        ValueError: size is below 1; a part of the mesh lies behind the camera.
    """
    if size < 1:
        raise ValueError(f"a picture needs at least 1 pixel a side, got {size}")
    at = (mesh.vertices - camera.eye) @ camera.axes.T  # (V, 3): right, up, backward
    z = -at[:, 2]
    if bool((z <= 1e-3).any()):
        raise ValueError("a part of the mesh lies behind the camera: move it away, or take mesh.centred()")
    focal = size * camera.focal
    x, y = size / 2 + focal * at[:, 0] / z, size / 2 - focal * at[:, 1] / z
    px, py, pz = x[mesh.faces], y[mesh.faces], z[mesh.faces]
    area = (px[:, 1] - px[:, 0]) * (py[:, 2] - py[:, 0]) - (px[:, 2] - px[:, 0]) * (py[:, 1] - py[:, 0])
    face = torch.full((size, size), -1)
    near = torch.full((size, size), math.inf)
    share = torch.zeros(size, size, 3)
    columns = torch.arange(size) + 0.5
    for top in range(0, size, BAND):
        rows = torch.arange(top, min(top + BAND, size)) + 0.5
        met = (py.amin(1) <= rows[-1]) & (py.amax(1) >= rows[0]) & (area.abs() > 1e-9)
        for some in met.nonzero()[:, 0].split(1024) if bool(met.any()) else ():
            ax, ay, az = px[some, :, None, None], py[some, :, None, None], pz[some, :, None, None]
            b = [
                (ax[:, j] - columns) * (ay[:, k] - rows[:, None]) - (ax[:, k] - columns) * (ay[:, j] - rows[:, None])
                for j, k in ((1, 2), (2, 0), (0, 1))
            ]
            bary = torch.stack(b, 1) / area[some, None, None, None]
            depth = 1 / (bary / az).sum(1)
            depth = torch.where((bary >= 0).all(1) & (depth > 0), depth, math.inf)
            best, which = depth.min(0)
            band = slice(top, top + len(rows))
            closer = best < near[band]
            near[band] = torch.where(closer, best, near[band])
            face[band] = torch.where(closer, some[which], face[band])
            won = bary.gather(0, which[None, None].expand(1, 3, *which.shape))[0].permute(1, 2, 0)
            share[band] = torch.where(closer[..., None], won, share[band])
    hit, which = face >= 0, face.clamp(min=0)
    weight = share / pz[which]
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    uv = (weight[..., None] * mesh.uv[mesh.face_uv[which]]).sum(2)
    corners = mesh.vertices[mesh.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = normal / normal.norm(dim=1, keepdim=True).clamp(min=1e-12)
    place = (weight[..., None] * corners[which]).sum(2)
    ray = camera.eye - place
    facing = (normal[which] * ray).sum(-1) / ray.norm(dim=-1)
    return Seen(face, torch.where(hit[..., None], uv, 0), torch.where(hit, facing.abs(), 0))


class Render(Sparse):
    """What a camera sees of a texture: (B, C, R, R) -> (B, C, size, size), 0 where it sees no mesh.

    Args:
        mesh: with texture coordinates. camera: as above. size: of the picture. texture: R.
        filter: "nearest": a pixel reads one texel, so views merge by averaging; or "bilinear".
    Attributes:
        weight: (size, size) how much a pixel's word counts: the cosine at which it sees the surface, to the power
            `sharpness`; 0 where it sees none.
    Raises:
        ValueError: another filter; a texture below 1.
    """

    def __init__(
        self,
        mesh: Mesh,
        camera: Camera,
        size: int,
        texture: int,
        *,
        filter: str = "nearest",
        sharpness: float = 4.0,
    ) -> None:
        if filter not in ("nearest", "bilinear"):
            raise ValueError(f"filter must be 'nearest' or 'bilinear', got {filter!r}")
        if texture < 1:
            raise ValueError(f"a texture needs at least 1 texel a side, got {texture}")
        seen = rasterise(mesh, camera, size)
        pixel = (seen.face.flatten() >= 0).nonzero()[:, 0]
        u, v = seen.uv.reshape(-1, 2)[pixel].double().clamp(0, 1).unbind(1)
        column, row = u * texture - 0.5, (1 - v) * texture - 0.5
        if filter == "nearest":
            column, row = column.round(), row.round()
        to, start, share = [], [], []
        for i in (0, 1):
            for j in (0, 1):
                r, c = row.floor() + i, column.floor() + j
                w = (1 - (row - r).abs()) * (1 - (column - c).abs())
                keep = w > 0
                to.append(pixel[keep])
                at = r.clamp(0, texture - 1) * texture + c.clamp(0, texture - 1)
                start.append(at.long()[keep])
                share.append(w[keep])
        super().__init__(torch.cat(to), torch.cat(start), torch.cat(share), (texture, texture), (size, size))
        self.weight = seen.facing**sharpness * (seen.face >= 0)

    def __repr__(self) -> str:
        return f"Render({self.size} to {self.out})"


def fill(texture: Tensor, known: Tensor, *, rounds: int | None = None) -> Tensor:
    """A texture whose unknown texels take the mean of their known neighbours, outwards ring by ring.

    Args:
        texture: (C, R, R). known: (R, R) bool. rounds: rings at most; by default until nothing is unknown.
    Raises:
        ValueError: nothing is known.
    """
    if not bool(known.any()):
        raise ValueError("no texel of the texture was seen: there is nothing to fill it from")
    around = torch.ones(1, 1, 3, 3, dtype=texture.dtype, device=texture.device)
    texture = torch.where(known, texture, 0)
    for _ in range(max(texture.shape[-2:]) if rounds is None else rounds):
        if bool(known.all()):
            break
        total = torch.nn.functional.conv2d(texture[:, None], around, padding=1)[:, 0]
        count = torch.nn.functional.conv2d(known[None, None].to(texture), around, padding=1)[0, 0]
        new = ~known & (count > 0)
        texture = torch.where(new, total / count.clamp(min=1), texture)
        known = known | new
    return texture


def shade(mesh: Mesh, texture: Tensor, camera: Camera, size: int) -> Tensor:
    """A picture (3, size, size) in [-1, 1] of a painted mesh on white, a little darker where it turns away.

    Args:
        texture: (3, R, R) in [-1, 1]. Drawn at twice the size and averaged.
    """
    seen = rasterise(mesh, camera, 2 * size)
    grid = torch.stack([2 * seen.uv[..., 0] - 1, 1 - 2 * seen.uv[..., 1]], -1)
    colour = torch.nn.functional.grid_sample(
        texture[None].float(), grid[None], align_corners=False, padding_mode="border"
    )[0]
    lit = (colour + 1) * (0.7 + 0.3 * seen.facing) - 1
    return torch.nn.functional.avg_pool2d(torch.where(seen.face >= 0, lit, 1.0), 2)
