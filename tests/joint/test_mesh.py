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
    assert A(torch.ones(1, 1, 12, 12)).round(decimals=5).unique().tolist() == [0, 1], "a pixel reads one texel's worth"


@pytest.mark.parametrize("filter", ["nearest", "bilinear"])
def test_a_texture_of_its_own_coordinates_says_where_each_pixel_looks(filter):
    """A texel's middle is its place, v grows upwards."""
    R, camera = 100, Camera.look(30, 20)
    at = (torch.arange(R) + 0.5) / R
    texture = torch.stack([at.expand(R, R), at.flip(0)[:, None].expand(R, R)])[None]
    seen = fields.rasterise(CUBE, camera, 24)
    found = Render(CUBE, camera, 24, R, filter=filter)(texture)[0]
    off = (found.permute(1, 2, 0) - seen.uv)[seen.face >= 0].abs().max()
    assert off < (1e-5 if filter == "bilinear" else 0.501 / R)


def test_what_a_pixel_sees_lies_on_its_ray():
    """Seen from a corner and near, where perspective tells; the field is an angle from top to bottom."""
    size, camera = 40, Camera.look(35, 25, distance=1.6, field=50)
    seen = fields.rasterise(CUBE, camera, size)
    side, hit = seen.face // 2, seen.face >= 0
    place = torch.zeros(size, size, 3)
    for k, (a, b, _, d) in enumerate(SIDES):
        share = torch.stack([3 * seen.uv[..., 0] - k % 3, 2 * seen.uv[..., 1] - k // 3], -1) / 0.92 - 0.04 / 0.92
        a, b, d = (CUBE.vertices[i] for i in (a, b, d))
        place[side == k] = (a + share[..., :1] * (b - a) + share[..., 1:] * (d - a))[side == k]
    wide = (2 * torch.arange(size) + 1 - size) / size * torch.tan(torch.deg2rad(torch.tensor(25.0)))
    ray = torch.stack([wide.expand(size, size), -wide[:, None].expand(size, size), -torch.ones(size, size)], -1)
    apart = torch.linalg.cross(place - camera.eye, ray @ camera.axes).norm(dim=-1)
    assert hit.float().mean() > 0.3 and apart[hit].max() < 1e-4


def test_cameras_look_at_the_origin_from_where_they_are_said_to_be():
    close = {"rtol": 0, "atol": 1e-6}
    for azimuth, eye in ((0, (0.0, 0, 3)), (90, (3.0, 0, 0))):
        camera = Camera.look(azimuth, 0)
        torch.testing.assert_close(camera.eye, torch.tensor(eye), **close)
    for camera in (Camera.look(0, 0), Camera.look(70, 40)):
        torch.testing.assert_close(camera.axes @ camera.eye, torch.tensor([0, 0, 3.0]), **close)
        torch.testing.assert_close(torch.linalg.cross(camera.axes[0], camera.axes[1]), camera.axes[2], **close)
        assert camera.axes[1, 1] > 0 and camera.axes[0, 1].abs() < 1e-6, "y is up"
    eyes = torch.stack([camera.eye for camera in fields.orbit(4, elevations=(30.0, -30.0))]) / 3
    high, far = eyes[:, 1], eyes[:, [0, 2]] / 0.75**0.5
    torch.testing.assert_close(high, torch.tensor([0.5, -0.5, 0.5, -0.5]), **close)
    torch.testing.assert_close(far, torch.tensor([[0.0, 1], [1, 0], [0, -1], [-1, 0]]), **close)


def test_a_side_counts_by_the_cosine_at_which_it_is_seen():
    """From far away at 60 degrees: cosines of 1/2 and of the root of 3/4, to the fourth power by default."""
    far = Camera.look(60, 0, distance=500, field=0.15)
    for how, wanted in (({}, [0.0625, 0.5625]), ({"sharpness": 2.0}, [0.25, 0.75])):
        weight = Render(CUBE, far, 12, 12, **how).weight
        assert sorted({round(w, 2) for w in weight[weight > 0].tolist()}) == [round(w, 2) for w in wanted]


def test_a_shaded_picture_is_the_rendered_one_on_white():
    texture = torch.nn.functional.avg_pool2d(normal(1, 3, 72, 72, seed=4).float(), 9, 1, 4)
    shown, seen = fields.shade(CUBE, texture[0], FRONT, 24), fields.rasterise(CUBE, FRONT, 24)
    rendered = torch.nn.functional.avg_pool2d(Render(CUBE, FRONT, 48, 72, filter="bilinear")(texture), 2)[0]
    inside = torch.nn.functional.avg_pool2d((seen.face >= 0).float()[None], 3, 1, 1)[0] == 1
    assert (shown - rendered)[:, inside].abs().max() < 0.03 and rendered[:, inside].std() > 0.05
    outside = torch.nn.functional.max_pool2d((seen.face >= 0).float()[None], 3, 1, 1)[0] == 0
    assert (shown[:, outside] == 1).all() and outside.any()


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
    """Two squares one behind the other, in either order of the list, of few triangles or of many."""
    square = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) / 2
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])

    def front(first, second, copies=1):
        mesh = [faces, *[faces + 4] * copies]
        mesh = Mesh(torch.cat([first, second]), torch.cat(mesh), uv, faces.repeat(1 + copies, 1))
        return int(fields.rasterise(mesh, FRONT, 30).face[15, 15]) >= 2

    near = torch.tensor([0.0, 0.0, 0.3])
    for copies in (1, 600):
        assert not front(square + near, square * 1.5, copies) and front(square, square * 1.5 + near, copies)
    slope = torch.tensor([[-0.2, -0.2, 2], [0.2, -0.2, 2], [1.8, 1.8, -6], [-1.8, 1.8, -6]])
    assert not front(slope, square), "half way up the picture from depth 1 to depth 9 is 1.8, before 3"


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


def test_a_mesh_is_moved_to_the_middle_and_fits_the_unit_ball():
    far = Mesh(3 * CUBE.vertices + torch.tensor([5.0, -1, 2]), CUBE.faces, CUBE.uv, CUBE.face_uv).centred()
    torch.testing.assert_close(far.vertices, CUBE.vertices / 0.75**0.5)


def test_polygons_are_cut_and_counted_backwards(tmp_path):
    path = tmp_path / "quad.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nf -4/-4/1 -3/-3 -2/-2 -1/-1\n")
    mesh = fields.read_mesh(path)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]] == mesh.face_uv.tolist()


def test_windows_of_cameras_merge_to_the_average_by_how_squarely_they_look():
    """Windows that believe in one colour each paint what weighted least squares says, and the rest is filled."""
    views = windows_of(CUBE.centred(), fields.orbit(3), window=12, size=18, texture=20)
    weight = torch.stack([Render(CUBE.centred(), camera, 18, 20).weight for camera in fields.orbit(3)])
    weight = sf.operators.Crops(12, 6, (18, 18))(weight[:, None]).flatten(0, 1)
    assert torch.equal(views.weights, weight[weight.flatten(1).any(1)])
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
    how = {"sampler": sf.samplers.ddim, "grid": [1.0, 0.5, 0.0]}
    alone, asked = next(iter(sf.run(prior, x[0], **how))).x[None], []

    def watched(x, t, *, to=None):
        asked.append(x[None])
        return prior(x, t)

    watched.schedule = prior.schedule
    for merge in ("x", "step"):
        joint.sample(watched, A, x, state="views", merge=merge, holes=True, **how)
        assert (asked[-1] - alone)[beside].abs().max() < 1e-12 and (asked[-1] - alone)[~beside].abs().max() > 0.1


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
    "two numbers": ("v 0 0\nvt 0 0\nf 1/1 1/1 1/1\n", "line 1: 'v' with 2 numbers instead of 3"),
    "a word": ("v 0 0 zero\n", "mesh.obj, line 1: 'zero' is no number"),
    "a face of words": ("v 0 0 0\nvt 0 0\nf a/1 1/1 1/1\n", "mesh.obj, line 3: 'a' is no number"),
    "not finite": ("v 0 0 nan\nvt 0 0\nf 1/1 1/1 1/1\n", r"vertices must be \(N, 3\) finite numbers"),
    "repeated": ("v 0 0 0\nvt 0 4\nf 1/1 1/1 1/1\n", r"in \[0, 1\], got 0 to 4: a texture that is repeated"),
    "one point": ("v 1 1 1\nvt 0 0\nf 1/1 1/1 1/1\n", "all 1 vertices of the mesh are one point"),
    "a vertex that is not": ("v 0 0 0\nvt 0 0\nf 1/1 2/1 3/1\n", r"faces must be numbers of 0..0, got 0..2"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_mesh_that_cannot_be_painted(name, tmp_path):
    text, message = MISUSE[name]
    (tmp_path / "mesh.obj").write_text(text)
    with pytest.raises(ValueError, match=message):
        fields.read_mesh(tmp_path / "mesh.obj").centred()


def test_what_is_no_mesh_is_named(tmp_path):
    picture, spoilt = tmp_path / "cat.png", tmp_path / "spoilt.npz"
    Image.new("RGB", (4, 4)).save(picture)
    spoilt.write_bytes(b"PK no archive")
    for path, message in ((picture, "cat.png is no OBJ mesh"), (tmp_path, "no OBJ"), (spoilt, "is no .npz file")):
        with pytest.raises(ValueError, match=message):
            fields.read_mesh(path)


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
    with pytest.raises(ValueError, match="at least 1 pixel a side, got 0"):
        Render(CUBE, FRONT, 0, 8)
    with pytest.raises(ValueError, match="at least 1 texel a side, got 0"):
        Render(CUBE, FRONT, 8, 0)
    with pytest.raises(ValueError, match="at least 1 camera"):
        fields.orbit(0)
    with pytest.raises(ValueError, match="size must be at least 1 and at most the canvas"):
        windows_of(CUBE, fields.orbit(1), window=32, size=16, texture=8)
