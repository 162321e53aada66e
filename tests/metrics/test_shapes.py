"""The judges of the shapes world: right on scenes they never saw, and silent where there is nothing to read."""

import pytest
import torch
import torch.nn.functional as F

from suffuse import metrics, noise, zoo
from suffuse.data import shapes
from suffuse.data.shapes import COLOURS, Scenes, Spec
from suffuse.recipes.judges import broken, lesson, train_judge
from suffuse.training.files import read_tensors

BARS = {"count": 0.99, "shape": 0.99, "colour": 0.99, "relation": 0.98}
SEED = 987_654_321
judges = pytest.mark.parametrize("judge", ["use", "held_out"])


def met(measured, bar):
    """Whether a measured share meets its bar: its interval's lower end lies within 3 points of it."""
    return measured.value >= bar - 0.01 and measured.low >= bar - 0.03


@judges
@pytest.mark.parametrize("scenes", [Scenes(SEED), Scenes(SEED, held_out=True)], ids=["seen", "held out"])
def test_a_judge_reads_fresh_scenes(judge, scenes):
    judge = metrics.shapes.judge(judge)
    own = metrics.shapes.accuracy(judge, scenes, 800)
    for name, bar in BARS.items():
        assert met(own[name], bar), f"{name} {own[name]}"
    for name in ("size", "fill", "background", "style"):
        assert own[name].value > 0.97, f"{name} {own[name]}"
    assert judge.accuracy["shape"].value == pytest.approx(own["shape"].value, abs=0.01)  # what it says of itself


@judges
def test_a_judge_reads_three_objects_at_twice_the_size(judge):
    batch = Scenes(SEED, 64, counts=(0.0, 0.0, 1.0))(0, 300)
    read = metrics.shapes.judge(judge).read(batch.images)
    told = shapes.match(Spec.of(batch.attributes), read)
    assert told.right["shape"].float().mean() > 0.93
    right = told.right["shape"] & told.right["colour"] & told.right["count"]
    a = batch.attributes
    for mine, theirs in ((read.x, a.x), (read.y, a.y)):
        assert ((mine[right, :3].sum(1) - theirs[right].sum(1)) / 3).abs().max() < 4


@judges
def test_the_judge_and_the_rules_agree_on_colours(judge):
    batch = Scenes(SEED)(1000, 400)
    read, rules = metrics.shapes.judge(judge).read(batch.images), metrics.shapes.read_by_rules(batch.images)
    found = torch.zeros_like(rules.pieces)
    for k in range(read.shape.shape[1]):
        found += F.one_hot(read.colour[:, k].clamp(min=0), len(COLOURS)) * read.present[:, k, None]
    agree = ((found > 0) == rules.colours).all(1)
    assert met(metrics.proportion(int(agree.sum()), 400, ""), 0.99)
    assert met(metrics.proportion(int((read.background == rules.background).sum()), 400, ""), 0.99)


def test_the_rules_read_colours_and_count_pieces():
    batch = Scenes(SEED, counts=(0.0, 1.0))(0, 400)
    a, rules = batch.attributes, metrics.shapes.read_by_rules(batch.images)
    true = F.one_hot(a.colour, len(COLOURS)).amax(1) > 0
    assert (rules.colours == true).all(1).float().mean() > 0.99
    assert (rules.background == a.background).all()
    apart = Scenes(SEED, counts=(0.0, 1.0), identical=1.0)(0, 100)
    solid = (apart.attributes.shape[:, 0] < 3) & (apart.attributes.fill[:, 0] == 0)
    assert (metrics.shapes.read_by_rules(apart.images).pieces[solid].sum(1) == 2).all()


@judges
@pytest.mark.parametrize("what", ["noise", "grey", "blobs", "blurred", "halved"])
def test_a_judge_finds_no_shapes_where_there_are_none(judge, what):
    batch, judge = Scenes(SEED, full=True)(0, 300), metrics.shapes.judge(judge)
    wrong = {
        "noise": lambda: noise((300, 3, 32, 32), 0).clamp(-1, 1),
        "grey": lambda: torch.zeros(300, 3, 32, 32),
        "blobs": lambda: F.interpolate(noise((300, 3, 4, 4), 0), size=32, mode="bicubic").clamp(-1, 1),
        "blurred": lambda: F.avg_pool2d(F.avg_pool2d(F.pad(batch.images, (6, 6, 6, 6), mode="reflect"), 7, 1), 7, 1),
        "halved": lambda: torch.cat([batch.images[..., :16], batch.images.roll(1, 0)[..., 16:]], -1),
    }[what]()
    caught = 1 - judge.match(batch.captions, wrong).all.float().mean()
    assert caught > {"halved": 0.5}.get(what, 0.97)
    if what in ("noise", "grey", "blobs"):
        assert (judge.read(wrong).count == 0).float().mean() > 0.9 or what == "grey"


@judges
def test_half_one_shape_and_half_another_is_none(judge):
    torch.manual_seed(0)
    images, target = broken(Scenes(SEED, counts=(1.0,))(0, 400))
    read, halves = metrics.shapes.judge(judge).read(images), target.shape[:, 0] == len(shapes.SHAPES)
    assert halves.sum() > 100
    assert (read.shape[halves, 0] == -1).float().mean() > 0.6
    assert (read.colour[halves, 0] == target.colour[halves, 0]).float().mean() > 0.9


@judges
def test_what_a_judge_reads_does_not_depend_on_the_batch(judge):
    images, judge = Scenes(SEED)(0, 24).images, metrics.shapes.judge(judge)
    whole, last = judge.read(images), judge.read(images[20:])
    for name in ("count", "shape", "colour", "size", "fill", "background", "style"):
        assert torch.equal(getattr(whole, name)[20:], getattr(last, name)), name
    assert torch.allclose(whole.x[20:], last.x, atol=1e-3)


def test_a_report_says_what_the_judge_itself_reaches():
    batch, judge = Scenes(SEED, full=True)(0, 60), metrics.shapes.judge("held_out")
    report = judge.report(batch.captions, batch.images)
    assert report["match"].n == 60 and report["match"].value > 0.8
    assert report["relation"].n == int((shapes.parse(batch.captions).relation >= 0).sum())
    assert str(judge.accuracy["relation"]) in report["relation"].how and "'held_out'" in report["relation"].how
    shuffled = judge.report(batch.captions[1:] + batch.captions[:1], batch.images)
    assert shuffled["match"].value < 0.1


def test_a_cell_reads_what_its_loss_asks_for():
    """The output for which a judge's loss is least is read back as the scene itself."""
    net, batch = metrics.shapes.build("use"), Scenes(3, counts=(0.2, 0.4, 0.4))(0, 16)
    outputs = [torch.zeros(16, *s, requires_grad=True) for s in ((3, 8, 8), (3, 8, 8, 24), (16,))]
    net.forward = lambda x: tuple(outputs)
    optimizer = torch.optim.Adam(outputs, lr=0.2)
    for _ in range(120):
        optimizer.zero_grad()
        net.loss(batch.images, batch.attributes).sum().backward()
        optimizer.step()
    with torch.no_grad():
        read = net.read(batch.images)
    assert shapes.match(Spec.of(batch.attributes), read).all.all()
    assert (read.x[:, :3].sort(1).values - batch.attributes.x.sort(1).values).abs().max() < 0.5


def test_two_readings_of_one_object_are_one_and_what_lies_inside_is_another():
    net = metrics.shapes.build("use")
    heat = torch.full((3, 3, 8, 8), -9.0)
    heat[0, 1, 4, 4], heat[0, 2, 4, 5] = 1.5, 0.5  # medium, and less surely large, in the next cell
    heat[1, 0, 4, 4], heat[1, 2, 4, 4] = 1.5, 0.5  # small within large
    heat[2, 1, 4, 4], heat[2, 2, 5, 4] = 0.5, 1.5  # large, and less surely medium
    net.forward = lambda x: (heat, torch.zeros(3, 3, 8, 8, 24), torch.zeros(3, 16))
    read = net.read(torch.zeros(3, 3, 32, 32))
    assert read.count.tolist() == [1, 2, 1]
    assert read.size[0, 0] == 1 and read.size[2, 0] == 2 and read.size[1, :2].tolist() == [0, 2]
    assert read.relations[1, 0, 1] == shapes.RELATIONS.index("inside")


@pytest.mark.slow
@judges
def test_what_is_written_is_what_was_measured(judge, tmp_path, monkeypatch):
    seen, accuracy = [], metrics.shapes.accuracy

    def watched(judge, *args):
        seen.append((judge.net.state_dict(), accuracy(judge, *args)))
        return seen[-1][1]

    monkeypatch.setattr(metrics.shapes, "accuracy", watched)
    about = train_judge(judge, tmp_path, steps=6, batch_size=24, fresh=128, progress=False)
    measured, own = seen[0]
    written = read_tensors(tmp_path / f"judge_{judge}" / "model.safetensors")
    assert all(v.dtype in (torch.bfloat16, torch.int64) for v in written.values())
    assert all(torch.equal(measured[name], v.to(measured[name].dtype)) for name, v in written.items())
    assert {name: m.value for name, m in own.items()} == {n: m["value"] for n, m in about["accuracy"].items()}
    with pytest.raises(ValueError, match="resume, or overwrite"):
        train_judge(judge, tmp_path, steps=6, batch_size=24, fresh=128, progress=False)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="'use', 'held_out', got 'strict'"):
        metrics.shapes.judge("strict")
    with pytest.raises(ValueError, match=r"multiple of 32, got \(2, 3, 28, 28\)"):
        metrics.shapes.judge("use").read(torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match=r"1 captions .* 2 pictures"):
        metrics.shapes.judge("use").match(["a star"], torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"multiple of 32, got \(2, 3, 0, 0\)"):
        metrics.shapes.judge("use").read(torch.zeros(2, 3, 0, 0))
    with pytest.raises(TypeError, match=r"pictures is torch\.uint8: scale it"):
        metrics.shapes.judge("use").read(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="pictures runs from 0 to 255: scale it"):
        metrics.shapes.judge("use").read(torch.linspace(0, 255, 6144).view(2, 3, 32, 32))
    broken = Scenes(SEED)(0, 3).images
    broken[1, 0, 5, 5] = float("nan")
    with pytest.raises(ValueError, match="pictures must be finite, 1 of 3 is not"):
        metrics.shapes.judge("use").read(broken)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        metrics.shapes.accuracy(metrics.shapes.judge("use"), Scenes(SEED), 0)
    with pytest.raises(FileNotFoundError, match=r"no 'judge_strict'; it has .*judge_held_out, judge_use"):
        zoo.path("judge_strict")


@pytest.mark.parametrize("n", [2, 7, 13, 50])
def test_a_lesson_has_a_picture_for_every_item(n):
    images, target = lesson(5, torch.arange(n))
    assert len(images) == len(target) == n
