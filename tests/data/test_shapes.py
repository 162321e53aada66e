"""The shapes world keeps its promises: the same bits in any batch, true attributes, true captions, what is held out."""

from dataclasses import replace

import pytest
import torch

from suffuse.data import shapes
from suffuse.data.shapes import Batch, Frieze, Scenes, Spec

SIZES = [32, 64]


def alone(batch, k):
    """The scenes with object k only."""
    a = batch.attributes
    only = torch.arange(a.shape.shape[1]) == k
    a = replace(a, shape=torch.where(only, a.shape, -1), depth=torch.where(only & a.present, 0, -1))
    return Batch(a, batch.decor, batch.width, str)


def box(mask):
    """Left, top, right, bottom (..., 4) of what a mask (..., H, W) covers at least half."""
    edges = []
    for along in (-2, -1):
        some = (mask > 0.5).any(along).float()
        at = torch.arange(some.shape[-1])
        edges += [torch.where(some > 0, at, 10**6).amin(-1), torch.where(some > 0, at, -1).amax(-1) + 1]
    left, right, top, bottom = edges
    return torch.stack((left, top, right, bottom), -1)


@pytest.mark.parametrize(
    "scenes",
    [Scenes(3), Scenes(3, 64), Scenes(3, held_out=True), Scenes(3, dotted=True), Frieze(3), Frieze(3, 64, 100)],
)
def test_an_item_is_the_same_bits_in_any_batch(scenes):
    whole, picked = scenes(0, 97), torch.tensor([31, 5, 96, 50])
    for part, rows in ((scenes[picked], picked), (scenes(31, 1), [31]), (scenes(13, 40), range(13, 53))):
        rows = torch.as_tensor(rows)
        for name in ("images", "masks", "edges", "depth"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        assert torch.equal(part.keypoints.nan_to_num(-1), whole.keypoints[rows].nan_to_num(-1))
        assert part.captions == [whole.captions[i] for i in rows.tolist()]


def test_items_and_seeds_differ():
    images = torch.cat([Scenes(0)(0, 200).images, Scenes(1)(0, 200).images, Scenes(0)(2**33, 200).images]).flatten(1)
    assert torch.pdist(images).min() > 1


@pytest.mark.parametrize("size", SIZES)
def test_what_is_seen_of_an_object_has_its_colour_and_the_rest_has_not(size):
    batch = Scenes(0, size)(0, 200)
    a, paint = batch.attributes, shapes.palette()
    for k in range(a.shape.shape[1]):
        here = (batch.masks[:, k] > 0.9999) & a.present[:, k, None, None]
        painted = batch.images.permute(0, 2, 3, 1)[here]
        wanted = paint[a.colour[:, k]][:, None, None].expand(-1, size, size, -1)[here]
        assert len(painted) > 2000
        assert (painted - wanted).abs().max() < 1e-3
    ground = batch.images.permute(0, 2, 3, 1)
    for k in range(a.shape.shape[1]):
        off = (ground - paint[a.colour[:, k].clamp(min=0)][:, None, None]).abs().amax(-1)
        bare = (batch.masks.sum(1) < 1e-6) & a.present[:, k, None, None]
        assert off[bare].min() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_objects_are_whole_large_enough_and_hide_a_fifth_of_each_other_at_most(size):
    batch = Scenes(1, size)(0, 600)
    a = batch.attributes
    for k in range(a.shape.shape[1]):
        rows, single = a.present[:, k], alone(batch, k).masks[:, k]
        left, top, right, bottom = box(single)[rows].unbind(-1)
        assert (
            torch.maximum(right - left, bottom - top) >= (size / 32) * 8
        ).all()  # 9 pixels, less a rounded edge each
        assert (2 * batch.decor.radius[:, k][rows] >= 9 * size / 32).all()
        rim = torch.cat([single[:, 0], single[:, -1], single[:, :, 0], single[:, :, -1]], 1)
        assert rim.max() < 0.75
        hidden = 1 - batch.masks[:, k].sum((1, 2)) / single.sum((1, 2)).clamp(min=1e-6)
        host = (a.relations[:, :, k] == shapes.RELATIONS.index("inside")).any(1)
        assert hidden[rows & ~host].max() <= 0.2
    overlaps = (a.count > 1) & (
        (
            1
            - batch.masks.sum((2, 3))
            / torch.stack([alone(batch, k).masks[:, k].sum((1, 2)) for k in range(a.shape.shape[1])], 1).clamp(min=1e-6)
        )
        > 0.005
    ).any(1)
    assert 0.02 < overlaps.float().mean() < 0.6  # some do overlap


@pytest.mark.parametrize("size", SIZES)
def test_relations_are_those_of_the_drawn_objects(size):
    batch = Scenes(2, size, identical=0.0)(0, 800)
    a = batch.attributes
    several = a.count > 1
    boxes = torch.stack([box(alone(batch, k).masks[:, k]) for k in (0, 1)], 1)[several].float()
    dx, dy = ((boxes[:, 1, i] + boxes[:, 1, i + 2] - boxes[:, 0, i] - boxes[:, 0, i + 2]) / 2 for i in (0, 1))
    within = (boxes[:, 0, :2] >= boxes[:, 1, :2]).all(1) & (boxes[:, 0, 2:] <= boxes[:, 1, 2:]).all(1)
    kind = a.relation[several]
    assert torch.bincount(kind, minlength=3).min() > 80
    assert torch.equal(within, kind == 2)
    assert (dx[kind == 0] > dy[kind == 0].abs()).all()
    assert (dy[kind == 1] > dx[kind == 1].abs()).all()
    mirrored = replace(a, x=size - a.x)
    assert (mirrored.relations[several][kind == 0][:, 1, 0] == 0).all()


@pytest.mark.parametrize("options", [{}, {"size": 64}, {"held_out": True}, {"dotted": True}, {"full": True}])
def test_every_caption_is_true_of_its_scene_and_seldom_of_another(options):
    batch = Scenes(4, **options)(0, 1500)
    spec = shapes.parse(batch.captions)
    told = shapes.match(spec, batch.attributes)
    assert bool(told.all.all())
    assert len(set(batch.captions)) > 1200
    other = shapes.match(spec, Scenes(5, **options)(0, 1500).attributes)
    assert other.all.float().mean() < 0.01
    for name, said in told.said.items():
        assert said.float().mean() > 0.2, name
        if name != "count":
            assert (other.right[name] & said).sum() < 0.7 * said.sum(), name


@pytest.mark.parametrize("name", ["shape", "colour", "size", "fill", "background", "style"])
def test_a_match_falls_with_each_attribute_that_was_named(name):
    batch = Scenes(6, identical=0.0)(0, 600)
    a = batch.attributes
    spec = shapes.parse(batch.captions)
    value = getattr(a, name)
    wrong = {name: value + 1} if value.ndim == 1 else {name: torch.where(a.present, value + 1, -1)}
    told = shapes.match(spec, replace(a, **wrong))
    said = told.said[name]
    assert 50 < said.sum() < 600 or name in ("shape", "colour")
    assert not (told.right[name] & said).any()
    assert torch.equal(told.all, ~said) or name == "size"  # what is inside is smaller
    assert not (told.all & said).any()


def test_swapped_objects_break_the_relation_and_swapped_words_mend_it():
    a = Scenes(7, counts=(0.0, 1.0), identical=0.0)(0, 400).attributes
    names = [(shapes.COLOURS[c], shapes.SHAPES[s]) for c, s in zip(a.colour.flatten(), a.shape.flatten(), strict=True)]
    things = ["{} {} {}".format("an" if c == "orange" else "a", c, s) for c, s in names]
    one, two = things[::2], things[1::2]
    beside = (a.relation < 2).nonzero()[:, 0].tolist()
    there = {0: "left of", 1: "above"}
    back = {0: "right of", 1: "under"}
    wrong = [f"{two[i]} {there[int(a.relation[i])]} {one[i]}" for i in beside]
    right = [f"{two[i]} is {back[int(a.relation[i])]} {one[i]}" for i in beside]
    assert not shapes.match(shapes.parse(wrong), a[beside]).right["relation"].any()
    assert shapes.match(shapes.parse(right), a[beside]).all.all()


def test_binding_is_judged_object_by_object():
    a = Scenes(8, counts=(0.0, 1.0), identical=0.0, full=True)(0, 300)
    differ = (a.attributes.colour[:, 0] != a.attributes.colour[:, 1]) & (
        a.attributes.shape[:, 0] != a.attributes.shape[:, 1]
    )
    crossed = replace(a.attributes, colour=a.attributes.colour.flip(1))
    assert not shapes.match(shapes.parse(a.captions), crossed).all[differ].any()


def test_objects_are_counted():
    a = Scenes(9, counts=(0.0, 1.0), identical=1.0)(0, 200)
    assert sum("two" in caption.split() for caption in a.captions) > 195
    fewer = replace(a.attributes, count=a.attributes.count - 1)
    assert not shapes.match(shapes.parse(a.captions), fewer).all.any()


@pytest.mark.parametrize("size", SIZES)
def test_training_never_sees_what_is_held_out(size):
    def pairs(scenes):
        a = scenes(0, 6000).attributes
        return shapes.held_out(a.shape, a.colour), a

    seen, a = pairs(Scenes(0, size))
    assert not seen.any()
    together = set(zip(a.shape[a.present].tolist(), a.colour[a.present].tolist(), strict=True))
    assert len(together) == 80 - 13
    assert {s for s, _ in together} == set(range(8)) and {c for _, c in together} == set(range(10))
    assert a.fill.max() == 1
    unseen, b = pairs(Scenes(0, size, held_out=True))
    assert unseen.any(1).all()
    assert len(set(zip(b.shape[unseen].tolist(), b.colour[unseen].tolist(), strict=True))) == 13
    dotted = Scenes(0, size, dotted=True)(0, 500).attributes
    assert (dotted.fill != 1).all() and (dotted.fill == 2).float().mean() > 0.2
    told = shapes.parse(Scenes(0, size)(0, 2000).captions)
    assert not shapes.held_out(told.shape, told.colour).any() and told.fill.max() == 1
    a = Frieze(0, size)(0, 2000).attributes
    assert not shapes.held_out(a.shape, a.colour).any() and a.fill.max() == 1
    shown = set(zip(a.shape[a.present].tolist(), a.colour[a.present].tolist(), strict=True))
    assert len(shown) == 70 - 12, "all others but figures"
    assert all(not shapes.held_out(*_named(c)).any() for c in shapes.captions(200, 0, size=size))
    assert all(shapes.held_out(*_named(c)).any() for c in shapes.captions(200, 0, held_out=True, size=size))


def _named(caption):
    spec = shapes.parse(caption)
    assert (spec.shape[0, :2] >= 0).all() and (spec.colour[0, :2] >= 0).all() and spec.relation[0] >= 0
    return spec.shape, spec.colour


def test_joints_lie_on_their_figure():
    batch = Scenes(1, 64)(0, 600)
    figures = batch.attributes.shape == shapes.SHAPES.index("figure")
    assert figures.sum() > 50
    assert torch.equal(batch.keypoints.isnan().any(-1).any(-1), ~figures)
    shown = torch.stack([alone(batch, k).masks[:, k] for k in range(3)], 1)
    x, y = batch.keypoints[figures].floor().long().clamp(0, 63).unbind(-1)
    assert (shown[figures][torch.arange(len(x))[:, None], y, x] > 0.4).all()


def test_edges_are_where_the_masks_change():
    batch = Scenes(2, 64)(0, 100)
    filled = ((batch.attributes.fill == 0) | ~batch.attributes.present).all(1)
    masks = batch.masks[filled]

    def pool(m):
        return torch.nn.functional.max_pool2d(m, 7, 1, 3)

    change = (pool(masks) + pool(-masks)).amax(1)  # largest minus smallest in 7 x 7, since tips reach out
    edges = batch.edges[filled][:, 0]
    assert edges[change < 0.01].max() < 0.1
    crossing = ((masks > 0.3) & (masks < 0.7)).any(1)
    assert edges[crossing].min() > 0.5
    assert crossing.sum() > 1000


def test_what_is_nearer_is_nearer_in_the_depth_map():
    batch = Scenes(3, 64, counts=(0.0, 0.0, 1.0))(0, 100)
    near = torch.stack([(batch.depth[:, 0] * (batch.masks[:, k] > 0.999)).amax((1, 2)) for k in range(3)], 1)
    assert torch.equal(near.argsort(dim=1, descending=True), batch.attributes.depth.argsort(dim=1))
    assert batch.depth[:, 0][batch.masks.sum(1) == 0].max() == 0


@pytest.mark.parametrize("far", [0, 20_000_003, 335_000_000])
def test_crops_of_a_frieze_agree_where_they_overlap_and_cut_objects(far):
    """Far to the right as well, where float32 does not know one pixel from the next, and in friezes of any number."""
    frieze, wide, n = Frieze(1), Frieze(1, width=128), torch.arange(40) + far**2 % 2**38
    start = torch.arange(40) * 37 + far
    whole = wide.crop(n, start).images
    assert (whole.diff(dim=0).abs().amax((1, 2, 3)) > 0.1).all(), "no two friezes are one"
    for shift in (0, 11, 64, 96):
        off = (frieze.crop(n, start + shift).images - whole[..., shift : shift + 32]).abs()
        assert (off > 1e-4).float().mean() < 1e-4 and off.max() < 0.05, "up to rounding, at a few corners"
    batch = frieze(0, 200)
    a = batch.attributes
    cut = a.present & ((a.x - batch.decor.radius < -1) | (a.x + batch.decor.radius > 33))
    assert 0.3 < cut.any(1).float().mean() < 0.95
    assert shapes.match(shapes.parse(batch.captions), a).all.all()


def test_a_frieze_ends_before_the_next_begins():
    """Places of frieze i are numbered i 2^24 + k: no number may be another frieze's, nor wrap around."""
    frieze, one = Frieze(1), torch.ones(1, dtype=torch.int64)
    last = 2**24 * 20 - 32
    ahead = frieze.crop(one, last * one).attributes
    assert not torch.equal(ahead.colour, frieze.crop(one + 1, 0 * one).attributes.colour)
    for item, start, message in (
        (1, last + 1, f"whole pixel from 0 to {last}, got torch.int64"),
        (1, -1, "whole pixel from 0"),
        (2**39, 0, f"numbered 0 to 2\\^39 - 1, got {2**39}"),
    ):
        with pytest.raises(ValueError, match=message):
            frieze.crop(item * one, start * one)


def test_a_subject_is_four_pictures_with_a_texture_of_its_own():
    batches = [shapes.subject(k, 64) for k in range(len(shapes.SUBJECTS))]
    for batch, (shape, colour, _) in zip(batches, shapes.SUBJECTS, strict=True):
        assert batch.images.shape == (4, 3, 64, 64)
        assert shapes.match(shapes.parse([f"a large {colour} {shape}"] * 4), batch.attributes).all.all()
        inside = batch.images.permute(0, 2, 3, 1)[batch.masks[:, 0] > 0.999]
        own = ((inside - shapes.palette()[shapes.COLOURS.index(colour)]).abs().amax(-1) < 1e-3).float().mean()
        assert 0.2 < own < 0.8
    with pytest.raises(ValueError, match="0 to 3, got 4"):
        shapes.subject(4)


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("", "needs words"),
        ("  , . ", "needs words"),
        ("a red zebra on a plaid background", "'zebra', 'plaid'; the vocabulary is a, an"),
        ("a red circle " * 3000, "at most 3 objects, got 3000"),
        ("a red circle and " * 2500 + "a star", "at most 3 objects, got 2501"),
        ("two red circles above a star", "a relation between single objects"),
        ("a circle above a star and a ring above a heart", "one relation, not two"),
        ("a red circle on a red background", "expected 'background', one of plain"),
        ("a red circle on a pink background on a blue background", "expected its end"),
        ("two red circle", "plural noun, got 'circle'"),
        ("a small", "singular noun, got its end"),
        ("red circle", "expected an object"),
    ],
)
def test_a_caption_that_cannot_be_read_says_where(caption, wanted):
    with pytest.raises(ValueError, match=wanted) as told:
        shapes.parse(caption)
    assert len(str(told.value)) < 1500


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: Scenes(size=48), "multiple of it, got 48"),
        (lambda: Scenes(counts=(0.5, 0.2)), "add to 1"),
        (lambda: Scenes(counts=(float("nan"), 1.0)), r"add to 1, got \(nan, 1.0\)"),
        (lambda: Scenes(identical=1.5), "identical must be a share from 0 to 1, got 1.5"),
        (lambda: Scenes(identical=float("nan")), "from 0 to 1, got nan"),
        (lambda: Scenes(0)(0, -1), "n must be at least 0, got -1"),
        (lambda: shapes.captions(-2, 0), "n must be at least 0, got -2"),
        (lambda: Frieze(0)(0, -1), "n must be at least 0, got -1"),
        (lambda: Frieze(0).crop(torch.arange(4), torch.tensor([3])), "as many crops as friezes, got 1 and 4"),
        (lambda: shapes.subject(0, 50), "32 or a multiple of it, got 50"),
        (lambda: Spec.of(Frieze(0, width=200)(0, 1).attributes), "at most 3 objects, got 1. slots"),
        (lambda: Scenes(-1), "seed must be"),
        (lambda: Scenes(0)[torch.tensor([-1])], "numbers from 0"),
        (lambda: Scenes(0)[torch.tensor([0.5])], "int64"),
        (lambda: shapes.captions(3, 0, objects=4), "1, 2 or 3, got 4"),
        (lambda: shapes.match(shapes.parse("a star"), Scenes(0)(0, 2).attributes), r"1 captions .* 2 pictures"),
    ],
)
def test_misuse_is_named(make, wanted):
    with pytest.raises(ValueError, match=wanted):
        make()


def test_an_edge_behind_a_nearer_object_is_not_drawn():
    batch = Scenes(0, 64, counts=(0.0, 1.0))(0, 3)
    a, whole = batch.attributes, torch.ones(3, 2)
    a = replace(a, shape=torch.ones_like(a.shape), fill=torch.zeros_like(a.fill), x=32 * whole, y=32 * whole)
    decor = replace(batch.decor, radius=torch.tensor([8.0, 24.0]).expand(3, 2))
    for order, drawn in (([1, 0], False), ([0, 1], True)):
        edges = Batch(replace(a, depth=torch.tensor(order).expand(3, 2)), decor, 64, str).edges
        assert (edges[:, 0, 16:48, 16:48].amax() > 0.5) == drawn
        assert edges.amax() > 0.9
