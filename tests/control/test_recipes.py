"""The recipes on an untrained run: what is made, taken up again, opened and refused."""

from dataclasses import replace

import pytest
import torch

import suffuse as sf
from suffuse import cli, pictures
from suffuse.data.shapes import Scenes
from suffuse.nets import Autoencoder, LatentCodec
from suffuse.recipes import control, draw, personalise, shapes
from suffuse.recipes.draw import read_picture
from suffuse.recipes.run import Run
from suffuse.training.files import ModelFileError, read_json, read_tensors
from tests.adapters.nets import model, said, spread

SHAPE = (8, 8, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = shapes.build("dit")
    spread(model.net, 0.02)
    model.codec = LatentCodec(Autoencoder(3, 8, 8, (1, 1, 1)))
    sf.save(model, folder / "model")
    Run(folder, "shapes", SHAPE, {"w": 2.0}, 0.0).write()
    return folder


@pytest.mark.slow
def test_two_controls_are_trained_opened_and_tied_to_their_base(base, tmp_path):
    how = {"steps": 2, "batch_size": 4, "watch_every": 0, "progress": False}
    control.train(base, tmp_path / "edges", kind="edges", **how)
    control.train(base, tmp_path / "pose", kind="pose", method="t2i", **how)
    again = control.train(base, tmp_path / "pose", kind="pose", method="t2i", resume=True, **how)
    assert again.settings["kind"] == "pose"
    model = control.opened(tmp_path / "edges", tmp_path / "pose")
    batch = control.scenes("pose", 5, torch.arange(2))
    assert (batch.attributes.shape == control.FIGURE).any(1).all()
    x = sf.noise((2, *SHAPE), seed=0)
    told = {kind: control.hint(kind, batch) for kind in ("edges", "pose")}
    plain = said(sf.load(base), x)
    assert torch.equal(said(model, x), plain) and not torch.equal(said(model.given(**told), x), plain)
    made = Run.open(tmp_path / "edges")
    replace(made, settings=made.settings | {"weights": "others"}).write()
    with pytest.raises(ModelFileError, match="was trained beside others, the base is now"):
        control.opened(tmp_path / "edges")
    with pytest.raises(ValueError, match="kind must be one of edges, soft_edges"):
        control.train(base, tmp_path / "x", kind="smell", **how)


@pytest.mark.slow
@pytest.mark.parametrize("method", personalise.METHODS)
def test_a_personal_model_is_a_run_like_any_other(base, tmp_path, method):
    images = sf.data.shapes.subject(0).images
    how = {"steps": 2, "batch_size": 2, "priors": 2, "progress": False, "method": method}
    made = personalise.train(base, tmp_path / "mine", images, token="[V]", noun="heart", **how)
    model = made.model()
    x = sf.noise((1, *SHAPE), seed=0)
    text = "a heart" if method == "style" else "a [v] on a striped pink background"
    before = sf.load(base).given(text=text.replace("[v]", "heart"))
    assert (said(model.given(text=text), x) - said(before, x)).abs().max() > 1e-6
    if method in ("inversion", "style"):
        file = tmp_path / "mine" / ("word" if method == "inversion" else "lora")
        load = sf.adapters.load_word if method == "inversion" else sf.adapters.load_lora
        again = load(sf.load(base), file.with_suffix(".safetensors"))
        torch.testing.assert_close(said(again.given(text=text), x), said(model.given(text=text), x), rtol=0, atol=1e-4)


def test_a_models_shape_is_kept_and_a_run_knows_its_own(tmp_path):
    made = model("unet")
    for shape in (None, (3, 4, 4)):
        made.shape = shape
        sf.save(made, tmp_path / "model")
        assert sf.load(tmp_path / "model").shape == shape
        assert ("shape" in read_json(tmp_path / "model" / "model.json")) == (shape is not None)
        Run(tmp_path, "shapes", (3, 8, 8), {}, 0.0).write()
        assert sf.load(tmp_path).shape == (shape or (3, 8, 8))
    assert sf.load("shapes").shape == SHAPE


def test_pictures_and_captions_of_a_folder(tmp_path):
    pictures.save_png(pictures.grid(torch.ones(1, 3, 8, 8), 1, gap=0), tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a white square\n")
    pictures.save_png(pictures.grid(-torch.ones(1, 3, 8, 8), 1, gap=0), tmp_path / "b.png")
    x, captions = personalise.pictures_in(tmp_path, 8)
    assert captions == ["a white square", None] and x[0].min() == 1 and x[1].max() == -1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no picture that can be read"):
        personalise.pictures_in(tmp_path / "empty", 8)
    with pytest.raises(ValueError, match=r"a\.png is no folder: name the folder"):
        personalise.pictures_in(tmp_path / "a.png", 8)


def test_what_cannot_be_learned_is_said_before_anything_is_drawn(base, tmp_path, monkeypatch):
    monkeypatch.setattr(personalise, "_priors", lambda *_: pytest.fail("the class was drawn"))
    opened = control.base_of(base)
    monkeypatch.setattr(personalise, "base_of", lambda path: opened)
    x = torch.zeros(2, 3, 32, 32)
    refused = [
        ({"token": "heart"}, x, "'heart' is in the vocabulary already"),
        ({"token": "my heart"}, x, "must be one word"),
        (
            {"captions": ["a [v] on a plain blue background", "a heart"]},
            x,
            r"caption 1 must name the token, .*, got 'a heart'",
        ),
        ({"method": "style", "captions": ["a heart"]}, x, "captions has 1 values for 2 pictures: give one for each"),
        ({"priors": 0}, x, "priors must be at least 1 where prior is above 0, got 0"),
        ({"prior": -1.0}, x, "prior must be a finite number of at least 0, got -1"),
        ({}, x[..., :16], r"images must be \(N, 3, 32, 32\) of floats, got \(2, 3, 32, 16\) of torch.float32"),
        ({}, x[:0], r"images must be .*, got \(0, 3, 32, 32\)"),
        ({}, x.to(torch.uint8), r"images must be .* of torch.uint8"),
        ({}, x + 2, r"images must lie in \[-1, 1\], got 2 to 2"),
        ({}, x * torch.nan, r"images must lie in \[-1, 1\], got nan to nan"),
    ]
    for how, images, says in refused:
        with pytest.raises(ValueError, match=says):
            personalise.train(base, tmp_path / "x", images, progress=False, **how)


def test_what_stays_as_it_is_is_of_the_class_of_the_world_and_of_nothing_unguided(base, tmp_path, monkeypatch):
    """Guided pictures would be guided twice when they are learned."""
    drawn, opened = [], control.base_of(base)[0]

    def sampled(spoken, _, n, seed, **how):
        drawn.append((seed, how["w"]))
        return torch.arange(n)[:, None] * torch.ones(n, *SHAPE[:1])

    monkeypatch.setattr(shapes, "sampled", sampled)
    kept = personalise._priors(opened, "heart", 8, 5, tmp_path / "kept.safetensors")
    assert drawn == [(7_000_008, 1.0)]
    words = opened.conditions["text"]
    said = [" ".join(words.vocabulary[i] for i in row if i >= 0) for row in kept["text"]]
    assert said[1::2] == ["a heart", "a large heart", "a picture of a heart", "a heart"]
    assert said[2::4] == ["", ""] and said[0::4] == [c.replace(",", "") for c in Scenes(7_000_008)(0, 8).captions[::4]]
    again = personalise._priors(opened, "heart", 8, 5, tmp_path / "kept.safetensors")
    assert len(drawn) == 1 and all(torch.equal(again[k], kept[k]) for k in kept)
    paired = personalise._beside({"x": torch.arange(3), "text": 10 + torch.arange(3)}, kept)
    assert paired["x"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and torch.equal(paired["prior_text"], kept["text"])
    assert torch.equal(paired["text"], paired["x"] + 10)


@pytest.mark.slow
def test_a_personal_run_imitates_its_base_and_resumes_with_the_same_words_only(base, tmp_path, monkeypatch):
    images, told, means = sf.data.shapes.subject(0).images, [], personalise.losses.imitation
    monkeypatch.setattr(personalise.losses, "imitation", lambda *a, **k: told.append(k["base"]) or means(*a, **k))
    how = {"steps": 2, "batch_size": 2, "priors": 4, "progress": False}
    captions = [f"a [v] on a {style} red background" for style in ("plain", "striped", "dotted", "gradient")]
    personalise.train(base, tmp_path / "mine", images, captions=captions, **how)
    assert len(told) == 2 and not any(p.requires_grad for p in told[0].net.parameters())
    settings = read_json(tmp_path / "mine" / "run.json")["settings"]
    assert settings["captions"] == captions and settings["priors"] == 4
    personalise.train(base, tmp_path / "mine", images, captions=captions, resume=True, **how)
    for other in ({"images": images}, {"images": images.flip(3), "captions": captions}):
        with pytest.raises(ValueError, match=r"other settings: (captions|pictures) was"):
            personalise.train(base, tmp_path / "mine", resume=True, **other, **how)


def test_what_is_guided_too_leads_away_from_the_base_told_nothing(monkeypatch):
    steered = sf.control.controlnet(model("dit"), 1, name="edges")
    seen = []
    monkeypatch.setattr(shapes, "sampled", lambda spoken, away, *_, **how: seen.append((away, how["w"])) or 0)
    monkeypatch.setattr(control, "decoded", lambda model, z: z)
    told = {"edges": torch.zeros(2, 1, 8, 8)}
    for both, text, w in ((False, False, 1), (True, False, 3.0)):
        control.draw(steered, Scenes(5)(0, 2), told=told, text=text, w=3.0, nfe=2, seed=0, both=both)
        assert seen[-1][1] == w
    assert "edges" in seen[0][0].bound and seen[1][0] is steered


def test_a_subject_is_told_by_templates_or_by_its_captions():
    rows, texts = personalise._told([None, None], "[v]", "heart")
    assert rows == [0, 1] * 3 and texts[:3] == ["a [v]", "a [v]", "a large [v]"]
    assert personalise._told(["a [v] on a blue background", None], "[v]", "heart") == (
        [0, 1],
        ["a [v] on a blue background", "a [v]"],
    )
    assert personalise._told(["a red star", None], None, "heart") == ([0, 1], ["a red star", "a heart"])


def test_a_run_is_a_model_or_a_control_and_says_which(base, tmp_path):
    with pytest.raises(ModelFileError, match=r"base.* is no control, it is a run of shapes"):
        control.opened(base, base=base)
    steered = sf.control.controlnet(model("dit"), 1, name="edges")
    made = Run(tmp_path, "control", SHAPE, {"base": "shapes", "weights": "w", "kind": "edges"}, 0.0)
    with pytest.raises(ModelFileError, match=r"is a control: use `suffuse sample shapes --control .* --hint PICTURE`"):
        made.model()
    with pytest.raises(ValueError, match=r"guides towards what the model is told: say what with --prompt$"):
        draw.told(made, 1, [], [], 2.0, model=steered)


@pytest.mark.slow
def test_a_control_is_sampled_with_from_the_command_line(base, tmp_path, capsys):
    how = {"steps": 2, "batch_size": 4, "watch_every": 0, "progress": False, "lr": 0.1, "ema": 0.0}
    control.train(base, tmp_path / "edges", kind="edges", **how)
    control.train(base, tmp_path / "masks", kind="masks", **how)
    seen = Scenes(5)(0, 2).images
    for name, x in zip("ab", seen, strict=True):
        pictures.save_png(pictures.grid(x[None], 1, gap=0, scale=1), tmp_path / f"{name}.png")
    drawn = 2 * sf.control.canny(pictures_of(tmp_path / "a.png"))[0].expand(3, -1, -1) - 1
    pictures.save_png(pictures.grid(drawn[None], 1, gap=0, scale=1), tmp_path / "drawn.png")

    def sampled(out, *more, run=base):
        cli.main(["sample", str(run), "--n", "2", "--steps", "2", "--out", str(tmp_path / out), *map(str, more)])
        return (tmp_path / out).read_bytes()

    def refused(words, *more, run=base):
        with pytest.raises(SystemExit):
            sampled("x.png", *more, run=run)
        assert words in capsys.readouterr().err

    edges = ("--control", tmp_path / "edges", "--hint")
    plain, a = sampled("plain.png"), sampled("1.png", *edges, tmp_path / "a.png")
    pixels = [pictures_of(tmp_path / f"{name}.png", 200) for name in ("plain", "1")]
    assert not torch.equal(*pixels)
    sampled("2.png", *edges, tmp_path / "b.png")
    assert not torch.equal(pixels[1], pictures_of(tmp_path / "2.png", 200))
    sampled("3.png", *edges, tmp_path / "drawn.png", "--drawn")
    assert torch.equal(pixels[1], pictures_of(tmp_path / "3.png", 200))
    sampled("4.png", *edges, tmp_path / "a.png", "--strength", "0")
    sampled("5.png", *edges, tmp_path / "a.png", "--acting", "0.1", "0.2")
    assert all(torch.equal(pixels[0], pictures_of(tmp_path / f"{name}.png", 200)) for name in "45")
    cli.main(["reproduce", str(tmp_path / "1.png")])
    assert (tmp_path / "1.again.png").read_bytes() == a != plain
    refused("--hint has 0 values for 1 controls", "--control", tmp_path / "edges")
    refused("belong to a control", "--hint", tmp_path / "a.png")
    refused("masks are 2 channels", "--control", tmp_path / "masks", "--hint", tmp_path / "a.png")
    refused("is no control", "--control", base, "--hint", tmp_path / "a.png")
    refused("suffuse sample", run=tmp_path / "edges")
    refused("there is no picture at", *edges, tmp_path / "none.png")
    cli.main(["info", str(tmp_path / "edges")])
    assert "a control by edges (controlnet) beside" in capsys.readouterr().out


def pictures_of(path, side=32):
    return read_picture(path, side, 3)


@pytest.mark.slow
def test_what_is_learned_beside_weights_in_bf16_is_finer(base, tmp_path):
    model = sf.load(base)
    model.net.bfloat16()
    sf.save(model, tmp_path / "base" / "model")
    replace(Run.open(base), path=tmp_path / "base").write()
    how = {"steps": 1, "batch_size": 2, "progress": False}
    control.train(tmp_path / "base", tmp_path / "edges", watch_every=0, **how)
    images, said = sf.data.shapes.subject(0).images, ["a heart"] * 4
    personalise.train(tmp_path / "base", tmp_path / "style", images, method="style", captions=said, **how)
    for file in ("edges/control/control", "style/lora"):
        learned = read_tensors((tmp_path / file).with_suffix(".safetensors"))
        assert {v.dtype for v in learned.values()} == {torch.float32}
    control.ship(Run.open(tmp_path / "edges"), tmp_path / "shipped")
    kept = read_tensors(tmp_path / "shipped" / "control" / "control.safetensors")
    assert {v.dtype for v in kept.values()} == {torch.bfloat16}
    batch = Scenes(5)(0, 1)
    models = [control.opened(tmp_path / name, base=tmp_path / "base") for name in ("edges", "shipped")]
    pictured = [
        control.draw(m, batch, told={"edges": control.hint("edges", batch)}, text=False, w=1, nfe=2, seed=0)
        for m in models
    ]
    torch.testing.assert_close(*pictured, rtol=0, atol=0.05)


def test_the_control_that_ships_is_obeyed_without_a_word():
    model, batch = control.opened("shapes-edges"), Scenes(63_000_017)(0, 12)
    edges = control.hint("edges", batch)

    def agreement(**told):
        x = control.draw(model, batch, told=told, text=False, w=1, nfe=8, seed=0)
        return sf.control.edge_f1(sf.control.canny(x), sf.control.canny(batch.images)).mean().item()

    assert agreement(edges=edges) > 0.8 > agreement() + 0.1
    assert {"edges", "pose"} < control.opened("shapes-edges", "shapes-pose").conditions.keys()
    assert agreement(edges=edges.roll(1, 0)) < 0.7
