"""Toys, files of arrays, augmentation, latents, and the real sets when they are there."""

import math
import os

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from suffuse import data
from suffuse.data import toys
from suffuse.random import noise

TOYS = {
    "swiss_roll": toys.swiss_roll,
    "moons": toys.moons,
    "checkerboard": toys.checkerboard,
    "ring": toys.gaussians,
    "grid": lambda n, seed: toys.gaussians(n, seed, modes=25, layout="grid", spread=0.05),
    "pinwheel": toys.pinwheel,
}


@pytest.mark.parametrize("name", TOYS)
def test_a_toys_item_depends_on_its_number_alone(name):
    torch.manual_seed(1)
    long, state = TOYS[name](500, 3), torch.get_rng_state()
    assert all(torch.equal(long[k][:70], v) for k, v in TOYS[name](70, 3).items())
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(long["x"], TOYS[name](500, 4)["x"]) and bool(long["x"].isfinite().all())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        TOYS[name](0, 3)


def course(n, seed):
    """The course's set, from scikit-learn itself."""
    from sklearn.datasets import make_swiss_roll

    x = make_swiss_roll(n, noise=0.0, random_state=seed, hole=True)[0][:, [0, 2]]
    return torch.tensor((x - x.mean()) / x.std() * 2, dtype=torch.float32)


def test_the_swiss_roll_is_the_courses():
    """Moments, range and thirds as the course's, and as near to scikit-learn's points as those are to themselves."""
    mine, theirs = toys.swiss_roll(200_000, 0), course(2_000_000, 0)
    x = mine["x"]
    assert x.mean(0).tolist() == pytest.approx(theirs.mean(0).tolist(), abs=0.02)
    assert x.std(0).tolist() == pytest.approx([1.852, 2.062], abs=0.01)
    assert [*x.amin(0).tolist(), *x.amax(0).tolist()] == pytest.approx([-3.29, -3.75, 3.24, 3.69], abs=0.01)
    thirds = torch.histc(mine["t"], 3, 1.5 * math.pi, 4.5 * math.pi) / len(x)
    assert thirds.tolist() == pytest.approx([0.375, 0.25, 0.375], abs=0.005)
    assert (mine["t"] - 3 * math.pi).mean().abs() < 0.02

    def distance(a, b):
        return (cKDTree(b).query(a)[0] ** 2).sum() + (cKDTree(a).query(b)[0] ** 2).sum()

    floors = [distance(x[k : k + 2048], theirs[k : k + 2048]) for k in range(0, 20_480, 2048)]
    assert np.mean(floors) == pytest.approx(0.374, abs=3 * 0.028 / math.sqrt(10) + 0.01)


def test_the_moons_are_two_half_circles():
    found = toys.moons(4000, 0, spread=0.0)
    centre = torch.tensor([[-0.5, -0.25], [0.5, 0.25]])[found["label"]]
    off = found["x"] - centre
    assert off.norm(dim=1).sub(1).abs().max() < 1e-6
    assert bool(((off[:, 1] >= -1e-6) == (found["label"] == 0)).logical_or(off[:, 1].abs() < 1e-6).all())
    assert found["x"].mean(0).abs().max() < 0.05 and found["label"].float().mean() == pytest.approx(0.5, abs=0.03)
    noisy = toys.moons(4000, 0, spread=0.2)["x"] - found["x"]
    assert noisy.std() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("cells", [2, 4])
def test_the_checkerboard_fills_its_dark_cells_evenly(cells):
    x = toys.checkerboard(20_000, 0, cells=cells)["x"]
    assert x.min() >= -2 and x.max() <= 2
    cell = ((x + 2) / 4 * cells).long().clamp(max=cells - 1)
    counts = torch.zeros(cells, cells).index_put_((cell[:, 0], cell[:, 1]), torch.ones(len(x)), accumulate=True)
    dark = torch.tensor([[float((r + c) % 2 == 0) for c in range(cells)] for r in range(cells)])
    assert torch.equal((counts > 0).float(), dark)
    assert (counts[counts > 0] / counts.sum() * (cells**2 / 2) - 1).abs().max() < 0.08
    inside = (x + 2) / 4 * cells % 1
    assert inside.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert inside.var(0).tolist() == pytest.approx([1 / 12] * 2, rel=0.05)


@pytest.mark.parametrize("name", ["moons", "ring", "grid", "pinwheel"])
def test_the_noise_of_a_toy_knows_nothing_of_its_label(name):
    """Within every label the points spread alike: the words that choose a label make no noise."""
    found = toys.moons(20_000, 0, spread=1.0) if name == "moons" else TOYS[name](20_000, 0)
    spreads = [found["x"][found["label"] == k].var(0).sum().item() for k in found["label"].unique()]
    assert max(spreads) / min(spreads) < (1.25 if name == "grid" else 1.12)


def test_gaussians_have_their_modes_in_place():
    for modes, layout, apart in ((8, "ring", 4 * math.sin(math.pi / 8)), (25, "grid", 1.0)):
        found, centres = toys.gaussians(20_000, 0, modes=modes, layout=layout), toys.mode_centres(modes, layout)
        assert torch.pdist(centres).min().item() == pytest.approx(apart)
        for k in range(modes):
            mine = found["x"][found["label"] == k]
            assert len(mine) / 20_000 == pytest.approx(1 / modes, rel=0.15)
            assert (mine.mean(0) - centres[k]).abs().max() < 0.02 and mine.std(0).tolist() == pytest.approx(
                [0.1, 0.1], rel=0.1
            )
    with pytest.raises(ValueError, match="got 24 on 'grid'"):
        toys.gaussians(10, 0, modes=24, layout="grid")


def test_the_pinwheel_turns_into_itself():
    """By a fifth of a turn one arm becomes the next; along an arm the radius has mean 2 and deviation 0.6."""
    found = toys.pinwheel(30_000, 0)
    x, turn = found["x"].double(), 2 * math.pi / 5
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    for k in range(5):
        one, other = x[found["label"] == k] @ rotation, x[found["label"] == (k + 1) % 5]
        assert (one.mean(0) - other.mean(0)).abs().max() < 0.05
        assert (torch.cov(one.T) - torch.cov(other.T)).abs().max() < 0.05
    # |x|^2 = 4 (along^2 + side^2), whatever the turn
    assert x.square().sum(1).mean().item() == pytest.approx(4 * (1 + 0.3**2 + 0.05**2), rel=0.02)
    straight = toys.pinwheel(30_000, 0, twist=0.0)
    first = straight["x"][straight["label"] == 0]
    assert first.std(0).tolist() == pytest.approx([0.6, 0.1], rel=0.05) and first[:, 0].mean() == pytest.approx(
        2, abs=0.03
    )


def test_arrays_of_a_file_become_tensors(tmp_path):
    path = tmp_path / "a.npz"
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.savez(path, images=pixels, labels=np.array([3, 1], np.uint8), z=np.ones((2, 7)), name=np.array(["a", "b"]))
    found = data.npz(path, {"x": "images", "label": "labels", "z": "z"})
    back = ((found["x"] + 1) * 127.5).round().numpy().transpose(0, 2, 3, 1)
    assert (back == pixels).all() and found["x"].min() >= -1 and found["x"].max() <= 1
    assert found["label"].tolist() == [3, 1] and found["z"].dtype == torch.float32
    for names, message in (
        ({"x": "image"}, "has no array 'image', but images, labels, name, z"),
        ({"z": "z"}, 'one array must be "x"'),
        ({"x": "name"}, "'x' of .* is <U1"),
    ):
        with pytest.raises(ValueError, match=message):
            data.npz(path, names)
    np.savez(path, x=np.zeros((2, 3)), label=np.zeros(3))
    with pytest.raises(ValueError, match="one first size"):
        data.npz(path)
    np.savez(path, x=np.array([{}, 1], dtype=object))
    with pytest.raises(ValueError, match=r"'x' of .* holds Python objects"):
        data.npz(path)
    for raw in (b"", b"no numbers", path.read_bytes()[:50]):
        (tmp_path / "b.npz").write_bytes(raw)
        with pytest.raises(ValueError, match=r"is not a whole \.npz file"):
            data.npz(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="is missing"):
        data.npz(tmp_path / "c.npz")


def test_a_flip_is_a_matter_of_the_sample_and_not_of_its_batch():
    x = noise((4000, 3, 2, 5), seed=0)
    flip, numbers = data.RandomFlip(0.3), torch.arange(4000)
    once = flip({"x": x}, numbers, 5)["x"]
    mirrored = (once == x.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (once == x).flatten(1).all(1)).all())
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.03)
    parts = torch.cat([flip({"x": x[s]}, numbers[s], 5)["x"] for s in (slice(0, 7), slice(7, 4000))])
    assert torch.equal(parts, once) and not torch.equal(flip({"x": x}, numbers, 6)["x"], once)
    with pytest.raises(ValueError, match="p must be a probability, got 2"):
        data.RandomFlip(2)


def test_a_random_crop_is_a_part_of_the_picture_at_every_place():
    height, width, size = 6, 8, 4
    ramp = (torch.arange(height)[:, None] * 100.0 + torch.arange(width)).expand(3000, 2, height, width)
    numbers = torch.arange(3000)
    cut = data.RandomCrop(size)({"x": ramp}, numbers, 0)["x"]
    corner = cut[:, 0, 0, 0]
    assert torch.equal(cut, corner[:, None, None, None] + ramp[:1, :, :size, :size])
    places, counts = corner.unique(return_counts=True)
    assert places.tolist() == [100.0 * r + c for r in range(3) for c in range(5)]
    assert (counts / 200 - 1).abs().max() < 0.3
    padded = data.RandomCrop(height + 2, pad=1)({"x": ramp[:1]}, numbers[:1], 0)["x"]
    assert torch.equal(padded[..., 1:-1, 1:-1], ramp[:1, :, :, :height]) or padded.shape[-1] == height + 2
    with pytest.raises(ValueError, match="too small to be cut to 7"):
        data.RandomCrop(7)({"x": ramp}, numbers, 0)


class Halved:
    """A codec whose latents are a quarter of the picture, with a little noise."""

    scale = 1.0

    def __init__(self, gain=2.0):
        self.gain, self.seen = gain, []

    def encode(self, x, seed):
        self.seen.append((len(x), seed))
        z = torch.nn.functional.avg_pool2d(x, 2) * self.gain
        return z + 1e-3 * noise(tuple(z.shape), seed)

    def decode(self, z):
        return torch.nn.functional.interpolate(z / self.gain, scale_factor=2.0)


def labelled():
    return {"x": noise((50, 1, 4, 4), seed=0), "label": torch.arange(50)}


def test_latents_are_encoded_once_and_read_back(tmp_path):
    cache, codec = tmp_path / "z", Halved()
    made = data.latents(labelled(), codec, cache, batch_size=16)
    rows = torch.tensor([41, 3, 17])
    got = made[rows]
    assert got["label"].tolist() == rows.tolist()
    assert torch.allclose(codec.decode(got["x"]).mean((1, 2, 3)), labelled()["x"][rows].mean((1, 2, 3)), atol=2e-3)
    spread = (made[torch.arange(50)]["x"] - 2 * torch.nn.functional.avg_pool2d(labelled()["x"], 2)) / 1e-3
    assert not torch.allclose(spread[:16], spread[16:32], atol=0.1), "every batch has noise of its own"
    fresh = Halved()
    again = data.latents(labelled(), fresh, cache, batch_size=16)
    assert fresh.seen == [(16, 0)], "only the first batch, as a check"
    assert torch.equal(again[rows]["x"], got["x"])
    feed = data.draws(again, seed=0)
    assert sorted(feed.take(50)["label"].tolist()) == list(range(50))


def test_a_stopped_encoding_goes_on(tmp_path):
    whole = data.latents(labelled(), Halved(), tmp_path / "whole", batch_size=2)

    class Stops(Halved):
        def encode(self, x, seed):
            if seed == 20:
                raise KeyboardInterrupt
            return super().encode(x, seed)

    with pytest.raises(KeyboardInterrupt):
        data.latents(labelled(), Stops(), tmp_path / "z", batch_size=2)
    assert not (tmp_path / "z").exists()
    codec = Halved()
    made = data.latents(labelled(), codec, tmp_path / "z", batch_size=2)
    assert [seed for _, seed in codec.seen] == [0, *range(17, 25)]
    rows = torch.arange(50)
    assert torch.equal(made[rows]["x"], whole[rows]["x"])


def test_a_cache_of_something_else_is_refused(tmp_path):
    data.latents(labelled(), Halved(), tmp_path / "z")
    with pytest.raises(ValueError, match="other data or another codec"):
        data.latents(labelled(), Halved(2.5), tmp_path / "z")
    with pytest.raises(ValueError, match="items = 50, not 40"):
        data.latents({k: v[:40] for k, v in labelled().items()}, Halved(), tmp_path / "z")
    with pytest.raises(ValueError, match="dtype = float32, not float16"):
        data.latents(labelled(), Halved(), tmp_path / "z", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        data.latents(labelled(), Halved(1e6), tmp_path / "y", dtype=torch.float16)


def test_a_real_set_that_is_not_there_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("SUFFUSE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="SUFFUSE_DATA is not set"):
        data.mnist("train")
    monkeypatch.setenv("SUFFUSE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"mnist\.npz is missing: SUFFUSE_DATA is"):
        data.mnist("test")


real = pytest.mark.skipif("SUFFUSE_DATA" not in os.environ, reason="needs SUFFUSE_DATA")


@real
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_class_of_the_real_sets_looks_like_itself_in_train_and_test(name):
    """Nearest class mean, learned on train, reads test far better than chance: pictures and labels belong together."""
    train, test = getattr(data, name)("train"), getattr(data, name)("test")
    assert (len(train), len(test)) == (60_000, 10_000) and len(train.classes) == 10
    assert torch.bincount(train.label).min() > 5400
    x, y = train[torch.arange(20_000)].values() if name == "mnist" else train.tensors().values()
    means = torch.stack([x[y == k].mean(0).flatten() for k in range(10)])
    unseen = test.tensors()
    hits = torch.cdist(unseen["x"].flatten(1), means).argmin(1) == unseen["label"]
    assert hits.float().mean() > (0.78 if name == "mnist" else 0.65)
    assert (x.min(), x.max()) == (-1, 1)


@real
def test_emoji_have_their_names_and_cifar_its_classes():
    found = data.emoji()
    at = {caption: k for k, caption in enumerate(found.captions)}
    x = found.tensors()["x"]
    colours = {
        name: x[at[name], :, 24:40, 24:40].mean((1, 2)) for name in ("red circle", "green circle", "blue circle")
    }
    assert [c.argmax().item() for c in colours.values()] == [0, 1, 2]
    assert bool((x[:, :, 0, 0] == 1).float().mean() > 0.9), "the corners are white"
    assert found.classes[found.label[at["red circle"]]] == "Symbols"
    assert data.emoji(32).pixels.shape == (1644, 3, 32, 32)
    test = data.cifar10("test")
    assert len(test) == 10_000 and not test.findings.left_out and test.label.bincount().tolist() == [1000] * 10
    sky = test.tensors()["x"][:, :, :4].mean((2, 3))
    blue = [(sky[test.label == k, 2] - sky[test.label == k, 0]).mean() for k in range(10)]
    assert test.classes[int(torch.stack(blue).argmax())] in ("airplane", "ship")
