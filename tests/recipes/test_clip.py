"""The towers' recipe: wrong captions are wrong in the one way they say, and what is written is what was measured."""

from dataclasses import replace

import pytest
import torch

from suffuse import metrics
from suffuse.data.shapes import CHANGES, COLOURS, RELATIONS, SHAPES, VOCABULARY, Scenes, changed, held_out, match, parse
from suffuse.metrics.clip_nets import WORDS
from suffuse.recipes import clip
from suffuse.training.files import read_tensors

FLIP = torch.tensor([1, 0])


def other_world(a, change):
    """The scene that the changed caption tells of."""
    return {
        "colour": lambda: replace(a, colour=a.colour[:, FLIP]),
        "order": lambda: replace(a, x=a.x[:, FLIP], y=a.y[:, FLIP]),
        "axis": lambda: replace(a, x=a.y, y=a.x),
    }[change]()


@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_caption_is_true_of_the_scene_changed_so_and_false_of_its_own(change):
    batch = Scenes(11, counts=(0.0, 1.0), identical=0.0, full=True)(0, 300)
    a = batch.attributes
    said, wrong = changed(batch, change)
    spec = parse(said)
    beside = a.relation != RELATIONS.index("inside")
    assert not match(spec, a).all[wrong].any()
    assert match(spec, other_world(a, change)).all[beside].all()
    same = torch.tensor([one == two for one, two in zip(said, batch.captions, strict=True)])
    assert not wrong[same].any()
    assert wrong.float().mean() > 0.6
    if change == "colour":
        assert not wrong[a.colour[:, 0] == a.colour[:, 1]].any(), "nothing to exchange"
    if change == "axis":
        assert not wrong[~beside].any(), "inside has no axis"
    if change == "order":
        assert wrong.all()
        lengths = torch.tensor([[len(x.split()) for x in texts] for texts in (said, batch.captions)])
        assert torch.equal(*lengths[:, beside]), "the words' number tells nothing"


def test_a_caption_that_stays_true_is_not_used():
    """Of two objects that differ in colour only, side by side without a relation said, colours may be exchanged."""
    batch = Scenes(12, identical=0.6)(0, 600)
    for change in CHANGES:
        said, wrong = changed(batch, change)
        assert torch.equal(wrong, ~match(parse(said), batch.attributes).all)
        assert not wrong[batch.attributes.count == 1].any()


def test_a_lesson_shows_what_its_captions_say():
    torch.manual_seed(0)
    images, said, wrong, usable = clip.lesson(5, torch.arange(200))
    texts = [[" ".join(VOCABULARY[i] for i in row if i >= 0) for row in ids.tolist()] for ids in (said, wrong)]
    judge = metrics.shapes.judge("use")
    true, false = (judge.match(captions, images).all for captions in texts)
    assert true.float().mean() > 0.9
    assert false[usable].float().mean() < 0.05
    assert usable.float().mean() > 0.3
    read = judge.read(images)
    assert held_out(read.shape, read.colour).any(1).float().mean() > 0.4, "what is kept from training models is here"
    assert set(read.count.tolist()) == {1, 2, 3}


def test_unknown_changes_are_named():
    with pytest.raises(ValueError, match="'colour', 'order', 'axis', got 'shape'"):
        changed(Scenes(0)(0, 2), "shape")


def test_the_longest_caption_fits():
    assert WORDS.ids(Scenes(3, 64)(0, 2000).captions).shape[1] <= WORDS.longest
    assert len(COLOURS) * len(SHAPES) == 80


@pytest.mark.slow
def test_what_is_written_is_what_was_measured_and_the_convolutions_stay(tmp_path, monkeypatch):
    seen, measure = [], clip.measure

    def watched(towers, *args, **kwargs):
        seen.append((towers.net.state_dict(), measure(towers, *args, **kwargs)))
        return seen[-1][1]

    monkeypatch.setattr(clip, "measure", watched)
    about = clip.train_clip(tmp_path, steps=3, batch_size=20, fresh=100, progress=False)
    (used, found), written = seen[0], read_tensors(tmp_path / "clip_shapes" / "model.safetensors")
    assert written.keys() == used.keys()
    assert all(v.dtype in (torch.bfloat16, torch.int64) for v in written.values())
    assert all(torch.equal(used[name], v.to(used[name].dtype)) for name, v in written.items())
    assert {name: m.value for name, m in found.items()} == {n: m["value"] for n, m in about["measured"].items()}
    judge = metrics.shapes.judge("use").net.state_dict()
    locked = [name for name in written if name.startswith("image.convolutions.")]
    assert len(locked) > 20
    for name in locked:
        torch.testing.assert_close(used[name], judge[name.removeprefix("image.convolutions.")], rtol=0, atol=0)
    with pytest.raises(ValueError, match="resume, or overwrite"):
        clip.train_clip(tmp_path, steps=3, batch_size=20, fresh=100, progress=False)
