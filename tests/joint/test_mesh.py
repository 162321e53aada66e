"""Painting a mesh: what cameras see, as an operator; files; and merging through the texture."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import suffuse as sf
from suffuse import fields, joint, oracle
from suffuse.data import shapes
from suffuse.fields import Camera, Mesh, Render
from suffuse.recipes import grounds
from suffuse.recipes.paint import paint, windows_of

from .worlds import dense, normal

CUBE = fields.cube()
FRONT = Camera.look(0, 0, distance=3, field=30)


@pytest.mark.parametrize("filter", ["nearest", "bilinear"])
def test_a_render_is_an_operator(filter):
    """Law 7."""
    A = Render(CUBE, Camera.look(30, 20), 14, 12, filter=filter)
    x, y = normal(2, 3, 12, 12), normal(2, 3, 14, 14, seed=1)
    torch.testing.assert_close((A(x) * y).flatten(1).sum(1), (x * A.T(y)).flatten(1).sum(1))
    torch.testing.assert_close(A(A.pinv(A(x))), A(x), rtol=1e-6, atol=1e-6)
    assert A(torch.ones(1, 1, 12, 12)).unique().round(decimals=5).tolist() == [0, 1], "a pixel reads one texel's worth"


def test_a_cube_from_the_front_is_one_side_of_it():
    """Its picture is a square of a size that perspective gives, and reads one chart of the texture evenly."""
    size = 200
    seen = fields.rasterise(CUBE, FRONT, size)
    half = 0.5 * size * FRONT.focal / 2.5  # the side lies 2.5 away
    assert abs((seen.face >= 0).sum().sqrt().item() - 2 * half) < 1.5
    row, column = (seen.face >= 0).nonzero().float().mean(0)
    assert abs(row - (size - 1) / 2) < 0.6 and abs(column - (size - 1) / 2) < 0.6
    u = seen.uv[size // 2, :, 0][seen.face[size // 2] >= 0]
    v = seen.uv[:, size // 2, 1][seen.face[:, size // 2] >= 0]
    for line, sign in ((u, 1), (v, -1)):  # v falls down the picture
        assert (line.diff() * sign > 0).all() and line.diff().std() < 1e-5
    assert (u[-1] - u[0] - 0.92 / 3).abs() < 0.02 and (v[0] - v[-1] - 0.92 / 2).abs() < 0.02
    middle = seen.facing[size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1]
    assert (middle - 1).abs().max() < 1e-4, "seen squarely"


@pytest.mark.parametrize("azimuth", [20, 110, 200, 290])
def test_what_is_hidden_is_not_seen(azimuth):
    """A cube hides all sides that turn away, and its sides are numbered anticlockwise from outside."""
    camera = Camera.look(azimuth, 25)
    corners = CUBE.vertices[CUBE.faces]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normal * corners.mean(1)).sum(1) > 0).all()
    towards = (normal * (camera.eye - corners.mean(1))).sum(1) > 0
    seen = fields.rasterise(CUBE, camera, 40).face
    assert set(seen[seen >= 0].tolist()) == set(towards.nonzero()[:, 0].tolist())


def test_what_is_nearer_hides_what_is_behind():
    """Two squares one behind the other, in either order of the list."""
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) / 2
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    for near in (0, 1):
        depth = torch.tensor([0.0, 0.0, 0.3])
        vertices = torch.cat([square + depth * (near == 0), square * 1.5 + depth * (near == 1)])
        mesh = Mesh(vertices, torch.cat([faces, faces + 4]), uv, torch.cat([faces, faces]))
        middle = fields.rasterise(mesh, FRONT, 30).face[15, 15]
        assert int(middle) // 2 == near


DATA = Path(os.environ.get("SUFFUSE_DATA", "nowhere")) / "spot" / "spot_mesh_multiview.npz"
on_spot = pytest.mark.skipif(not DATA.exists(), reason="SUFFUSE_DATA has no spot")


@on_spot
def test_pictures_are_those_of_another_renderer():
    """Silhouette, brightness and hue, against the pictures that come with the mesh."""
    mesh, data = fields.read_mesh(DATA), np.load(DATA)
    texture = torch.from_numpy(data["texture"]).permute(2, 0, 1)[None] / 127.5 - 1
    texture = torch.nn.functional.avg_pool2d(texture, 4)  # 128 texels, for pictures of 64
    for k in (0, 13, 27):
        world = torch.from_numpy(data["view_camera_to_world"][k]).float()
        focal = float(data["view_focal_px"]) / float(data["view_size"])
        A = Render(mesh, Camera(world[:3, 3], world[:3, :3].T, focal), 64, 128, filter="bilinear")
        theirs = torch.from_numpy(data["view_rgba"][k]).permute(2, 0, 1).float() / 127.5 - 1
        theirs = torch.nn.functional.avg_pool2d(theirs[None], 2)[0]
        mine, mask = A.weight > 0, theirs[3] > 0
        assert (mine & mask).sum() / (mine | mask).sum() > 0.95
        inside = mine & (theirs[3] > 0.99)
        a, b = (A(texture)[0] + 1)[:, inside], (theirs[:3] + 1)[:, inside]  # theirs are shaded
        assert torch.corrcoef(torch.stack([a.sum(0), b.sum(0)]))[0, 1] > 0.8
        bright = b.sum(0) > 1
        assert (a / a.sum(0) - b / b.sum(0))[:, bright].abs().mean() < 0.01


def test_a_mesh_is_written_and_read(tmp_path):
    image = torch.linspace(-1, 1, 3 * 16).reshape(3, 16, 1).expand(3, 16, 16)
    again = fields.read_mesh(fields.write_mesh(CUBE, image, tmp_path, "box"))
    for name in ("vertices", "faces", "uv", "face_uv"):
        torch.testing.assert_close(getattr(again, name), getattr(CUBE, name), rtol=1e-5, atol=1e-5)
    assert (
        "map_Kd box.png" in (tmp_path / "box.mtl").read_text()
        and "mtllib box.mtl" in (tmp_path / "box.obj").read_text()
    )
    with Image.open(tmp_path / "box.png") as png:
        assert png.size == (16, 16) and png.getpixel((0, 0)) == (0, 87, 174) and png.getpixel((5, 15))[0] > 80


def test_polygons_are_cut_and_counted_backwards(tmp_path):
    path = tmp_path / "quad.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nf -4/-4/1 -3/-3 -2/-2 -1/-1\n")
    mesh = fields.read_mesh(path)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] == mesh.face_uv.tolist()


def test_windows_of_cameras_merge_to_the_average_by_how_squarely_they_look():
    """Windows that believe in one colour each paint what weighted least squares says, and the rest is filled."""
    views = windows_of(CUBE.centred(), fields.orbit(3), window=12, size=18, texture=20)
    colours = normal(views.n, 1, 12, 12, seed=3)
    x, share = paint(_Points(colours), views, (1, 12, 12), steps=2, seed=0, chunk=5, sampler=sf.samplers.ddim)
    known = views.A.adjoint(torch.ones(1, views.n, 1, 12, 12))[0, 0] > 0
    P = dense(views.A, (1, 20, 20), views.weights.expand(views.n, 1, 12, 12))
    wanted = (P @ colours.flatten()).reshape(20, 20).clamp(-1, 1)
    torch.testing.assert_close(x[0][known], wanted[known].float(), rtol=1e-4, atol=1e-4)
    assert 0.2 < share < 0.95 and share == pytest.approx(known.float().mean().item())
    assert x.min() >= -1 and (x[0][~known] != 0).all()


class _Points:
    """Rows that believe in a picture each."""

    def __init__(self, x0):
        self.x0, self.schedule = x0, sf.schedules.Linear()

    def rows(self, index):
        return _Points(self.x0[index])

    def __call__(self, x, t, *, to=None):
        return sf.Prediction(x, *self.schedule(t, like=x), x0=self.x0.to(x))


def test_beside_the_mesh_a_view_keeps_its_own_belief():
    A = [Render(CUBE, camera, 10, 12) for camera in fields.orbit(2)]
    prior = oracle.Gaussian(normal(1, 10, 10, seed=2), 0.3)
    x = normal(1, 2, 1, 10, 10, seed=1)
    beside = torch.stack([one.weight == 0 for one in A])[None, :, None]
    own = prior(x[0], 0.5).x0[None]
    for merge in ("x0", "eps"):
        p = joint.agree(prior, A, merge=merge, holes=True)(x, 0.5)
        assert (p.x0 - own)[beside].abs().max() < 1e-12 and (p.x0 - own)[~beside].abs().max() > 0.1
    ends = []
    seen = joint.Views(A, holes=True)
    for merge in ("x", "step"):
        out = joint.sample(prior, seen, x, state="views", merge=merge, steps=2, sampler=sf.samplers.ddim)
        ends.append(out)
    assert all(end.isfinite().all() for end in ends)


def test_unknown_texels_take_their_neighbours_means():
    x = torch.arange(5.0).repeat(5, 1)[None]
    known = torch.zeros(5, 5, dtype=torch.bool)
    known[:, 1] = known[:, 3] = True
    full = fields.fill(x, known)
    assert full[0, 2].tolist() == [1, 1, 2, 3, 3] and torch.equal(full[0][known], x[0][known])


SIDES = ((4, 6, 7, 5), (0, 1, 3, 2), (2, 3, 7, 6), (0, 4, 5, 1), (1, 5, 7, 3), (0, 2, 6, 4))


def charts(fn, size=144):
    """The cube's texture: fn(number of the side, places on it (..., 3)), a little beyond each chart as well."""
    v, u = torch.meshgrid(1 - (torch.arange(size) + 0.5) / size, (torch.arange(size) + 0.5) / size, indexing="ij")
    image = torch.zeros(3, size, size)
    for k, (a, b, _, d) in enumerate(SIDES):
        at = torch.stack([3 * u - k % 3, 2 * v - k // 3], -1)
        mine, at = ((at >= 0) & (at <= 1)).all(-1), (at - 0.04) / 0.92
        a, b, d = (CUBE.vertices[i] for i in (a, b, d))
        image[:, mine] = fn(k, a + at[..., :1] * (b - a) + at[..., 1:] * (d - a))[mine].mT
    return image


def test_seams_of_a_cube_painted_with_where_it_is_are_those_of_its_shape():
    """Colour = place: a gap g across a right angle moves two numbers by g/2, across a diagonal by g/sqrt(2) each."""
    across, within = fields.seams(CUBE, charts(lambda k, place: place), gap=0.06)
    assert across == pytest.approx(0.06 / 3, rel=0.02) and within == pytest.approx(2**0.5 * 0.06 / 3, rel=0.02)
    colour = normal(6, 3).float()
    across, within = fields.seams(CUBE, charts(lambda k, place: colour[k].expand_as(place)), gap=0.03)
    beside = [(i, j) for i in range(6) for j in range(i) if {i, j} not in ({0, 1}, {2, 3}, {4, 5})]
    truth = sum((colour[i] - colour[j]).abs().mean() for i, j in beside) / 12
    assert within < 1e-5 and across == pytest.approx(truth.item(), rel=1e-3)


def test_grounds_are_painted_as_the_lesson_says_and_only_the_silhouette_is_read():
    torch.manual_seed(0)
    x, inside, style, colour = grounds.lesson(5, torch.arange(96))
    part = inside[:, None].float()
    mean = (x * part).sum((2, 3)) / part.sum((2, 3))
    hue = mean - mean.mean(1, keepdim=True)
    known = shapes.palette() - shapes.palette().mean(1, keepdim=True)
    coloured = colour < 8  # neither white nor black
    near = torch.nn.functional.cosine_similarity(hue[:, None], known[None, 2:8], dim=2).argmax(1) + 2
    assert (near == colour)[coloured].float().mean() > 0.9
    step = (x.diff(dim=3).abs().mean(1) * (inside[..., 1:] & inside[..., :-1])).sum((1, 2)) / inside.sum((1, 2))
    flat, busy = (step[(style == 0) & coloured].mean(), step[((style == 1) | (style == 2)) & coloured].mean())
    assert busy > 1.5 * flat
    judge = grounds.GroundJudge().eval()
    scores, beside = judge(x, inside), torch.where(inside[:, None], x, torch.rand_like(x))
    assert torch.equal(judge(beside, inside), scores)
    assert (judge(x.flip(0), inside) - scores).abs().max() > 1e-5


MISUSE = {
    "no uv": ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "line 4: a face without texture coordinates"),
    "no uv but normals": ("v 0 0 0\nv 1 0 0\nv 0 1 0\nvn 0 0 1\nf 1//1 2//1 3//1\n", "unwrap the mesh first"),
    "no faces": ("v 0 0 0\n", "holds no faces"),
    "a vertex that is not": ("v 0 0 0\nvt 0 0\nf 1/1 2/1 3/1\n", r"faces must be numbers of 0..0, got 0..2"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_mesh_that_cannot_be_painted(name, tmp_path):
    text, message = MISUSE[name]
    (tmp_path / "mesh.obj").write_text(text)
    with pytest.raises(ValueError, match=message):
        fields.read_mesh(tmp_path / "mesh.obj")


def test_misuse_of_cameras():
    one = Mesh(CUBE.vertices, CUBE.faces[:2], CUBE.uv, CUBE.face_uv[:2])
    with pytest.raises(ValueError, match="no edges at which charts change"):
        fields.seams(one, torch.zeros(3, 8, 8), gap=0.1)
    with pytest.raises(ValueError, match="no edge that two triangles share"):
        fields.seams(Mesh(CUBE.vertices, CUBE.faces[:1], CUBE.uv, CUBE.face_uv[:1]), torch.zeros(3, 8, 8), gap=0.1)
    with pytest.raises(ValueError, match="lies behind the camera"):
        fields.rasterise(CUBE, Camera.look(0, 0, distance=0.4), 8)
    with pytest.raises(ValueError, match="'nearest' or 'bilinear', got 'cubic'"):
        Render(CUBE, FRONT, 8, 8, filter="cubic")
    with pytest.raises(ValueError, match="no texel"):
        fields.fill(torch.zeros(1, 2, 2), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 1 camera"):
        fields.orbit(0)
    with pytest.raises(ValueError, match="size must be at least 1 and at most the canvas"):
        windows_of(CUBE, fields.orbit(1), window=32, size=16, texture=8)
