"""A triangle mesh with texture coordinates; Wavefront OBJ in and out."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Mesh", "cube", "read_mesh", "write_mesh"]

_BEYOND = 0.1  # how far unwrapping may miss the border of the texture, which is then continued


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles.

    Attributes:
        vertices: (V, 3) float32. faces: (F, 3) numbers of vertices, anticlockwise seen from outside.
        uv: (T, 2) float32 in [0, 1], v = 0 the bottom of the texture. face_uv: (F, 3) numbers of uv.
    Raises:
        ValueError: arrays of other shapes, with values that are not finite, or with numbers of what is not there.
    """

    vertices: Tensor
    faces: Tensor
    uv: Tensor
    face_uv: Tensor

    def __post_init__(self) -> None:
        f = self.faces
        if f.ndim != 2 or f.shape[1] != 3 or self.face_uv.shape != f.shape:
            raise ValueError(
                f"faces and face_uv must be (F, 3) both, got {tuple(f.shape)}, {tuple(self.face_uv.shape)}"
            )
        for name, values, wide in (("vertices", self.vertices, 3), ("uv", self.uv, 2)):
            if values.ndim != 2 or values.shape[1] != wide or not bool(values.isfinite().all()):
                raise ValueError(f"{name} must be (N, {wide}) finite numbers, got shape {tuple(values.shape)}")
        if len(self.uv) and not -_BEYOND <= self.uv.min().item() <= self.uv.max().item() <= 1 + _BEYOND:
            raise ValueError(
                f"texture coordinates must lie in [0, 1], got {self.uv.min().item():g} to {self.uv.max().item():g}: a "
                "texture that is repeated cannot be painted, unwrap the mesh first"
            )
        for name, index, n in (("faces", f, len(self.vertices)), ("face_uv", self.face_uv, len(self.uv))):
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
                raise ValueError(f"{name} must be numbers of 0..{n - 1}, got {int(index.min())}..{int(index.max())}")

    def __repr__(self) -> str:
        return f"Mesh({len(self.vertices)} vertices, {len(self.faces)} triangles, {len(self.uv)} uv)"

    def centred(self) -> Mesh:
        """The same, its bounding box centred and its farthest vertex at distance 1.

        Raises:
            ValueError: all vertices are one point.
        """
        middle = (self.vertices.amin(0) + self.vertices.amax(0)) / 2
        v = self.vertices - middle
        far = v.norm(dim=1).max()
        if not far > 0:
            raise ValueError(f"all {len(v)} vertices of the mesh are one point")
        return Mesh(v / far, self.faces, self.uv, self.face_uv)


def cube(margin: float = 0.04) -> Mesh:
    """A cube of side 1; its six sides are six charts of the texture, three in a row, `margin` of a chart apart."""
    corners = torch.tensor([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    sides = ((4, 6, 7, 5), (0, 1, 3, 2), (2, 3, 7, 6), (0, 4, 5, 1), (1, 5, 7, 3), (0, 2, 6, 4))
    faces, uv, face_uv = [], [], []
    for k, (a, b, c, d) in enumerate(sides):
        low = torch.tensor([k % 3 + margin, k // 3 + margin])
        size = 1 - 2 * margin
        first = 4 * k
        uv += [(low + size * torch.tensor(at)) / torch.tensor([3, 2]) for at in ((0, 0), (1, 0), (1, 1), (0, 1))]
        faces += [(a, b, c), (a, c, d)]
        face_uv += [(first, first + 1, first + 2), (first, first + 2, first + 3)]
    return Mesh(corners, torch.tensor(faces), torch.stack(uv), torch.tensor(face_uv))


def read_mesh(path: str | Path) -> Mesh:
    """Read an OBJ file, its polygons cut into fans; "cube" is the one built in; an .npz has the arrays of `Mesh`.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it holds no faces, or no texture coordinates, or is no
            mesh.
    """
    if str(path) == "cube":
        return cube()
    path = Path(path)
    if path.suffix == ".npz":
        import numpy as np

        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is no .npz file")
        with np.load(path, allow_pickle=False) as data:
            names = ("vertices", "faces", "uv", "face_uv")
            if missing := [name for name in names if name not in data]:
                raise ValueError(f"{path} has no {missing[0]!r}: a mesh to paint has {', '.join(names)}")
            v, f, uv, fuv = (torch.from_numpy(data[name].astype(t)) for name, t in zip(names, "flfl", strict=True))
        return Mesh(v.float(), f.long(), uv.float(), fuv.long())
    vertices, uv, faces, face_uv = [], [], [], []
    try:
        lines = path.read_text().splitlines()
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(f"{path} is no OBJ mesh: it is not a file of text") from None
    for number, line in enumerate(lines, 1):
        kind, *rest = line.split() or ("",)
        if kind in ("v", "vt"):
            to, wide = (vertices, 3) if kind == "v" else (uv, 2)
            to.append([_read(float, value, path, number) for value in rest[:wide]])
            if len(to[-1]) < wide:
                raise ValueError(f"{path}, line {number}: {kind!r} with {len(to[-1])} numbers instead of {wide}")
        elif kind == "f":
            corners = [corner.split("/") for corner in rest]
            if any(len(corner) < 2 or not corner[1] for corner in corners):
                raise ValueError(
                    f"{path}, line {number}: a face without texture coordinates (v/vt); unwrap the mesh first, for "
                    "example in Blender with UV > Smart UV Project"
                )
            v = [_number(_read(int, corner[0], path, number), len(vertices)) for corner in corners]
            t = [_number(_read(int, corner[1], path, number), len(uv)) for corner in corners]
            for k in range(1, len(corners) - 1):
                faces.append((v[0], v[k], v[k + 1]))
                face_uv.append((t[0], t[k], t[k + 1]))
    if not faces:
        raise ValueError(f"{path} holds no faces: it is no OBJ mesh")
    corner, place = torch.tensor(vertices).reshape(-1, 3), torch.tensor(uv).reshape(-1, 2)
    return Mesh(corner, torch.tensor(faces), place, torch.tensor(face_uv))


def _read(kind: Callable[[str], Any], text: str, path: Path, number: int) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{path}, line {number}: {text!r} is no number") from None


def _number(value: int, count: int) -> int:
    """OBJ counts from 1, or backwards from -1; 0 is none."""
    return value - 1 if value > 0 else count + value


def write_mesh(mesh: Mesh, texture: Tensor, folder: str | Path, name: str = "mesh") -> Path:
    """Write NAME.obj, NAME.mtl and NAME.png into a folder; returns the OBJ's path.

    Args:
        texture: (3, R, R) in [-1, 1], its first row the top.
    """
    from suffuse import pictures

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    image = pictures.grid(texture[None], 1, gap=0)
    pictures.save_png(image, folder / f"{name}.png")
    (folder / f"{name}.mtl").write_text(f"newmtl painted\nKa 1 1 1\nKd 1 1 1\nillum 1\nmap_Kd {name}.png\n")
    lines = [f"mtllib {name}.mtl", "usemtl painted"]
    lines += [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u:.6g} {v:.6g}" for u, v in mesh.uv.tolist()]
    for corners, places in zip((mesh.faces + 1).tolist(), (mesh.face_uv + 1).tolist(), strict=True):
        lines.append("f " + " ".join(f"{v}/{t}" for v, t in zip(corners, places, strict=True)))
    out = folder / f"{name}.obj"
    out.write_text("\n".join(lines) + "\n")
    return out
