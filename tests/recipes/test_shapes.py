"""Text to image by the command line: what it draws, what it measures, and how it is misused."""

import inspect
import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from suffuse import Denoiser, cli, load, pictures, zoo
from suffuse.data.shapes import COLOURS, SHAPES, Scenes, captions, parse
from suffuse.metrics import shapes as judges
from suffuse.recipes import latents, shapes
from suffuse.recipes.draw import decoded
from suffuse.recipes.run import Run
from suffuse.training.files import read_tensors

FOLD = torch.nn.PixelUnshuffle(4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained for a moment: enough to be sampled, not to be good."""
    out = tmp_path_factory.mktemp("runs") / "shapes"
    with pytest.MonkeyPatch.context() as now:
        now.setattr(shapes, "CODEC", shapes.CODEC | {"width": 8, "steps": 2, "batch_size": 4, "estimated": 16})
        shapes.train(out, steps=2, batch_size=4, watch_every=0, progress=False)
    return out


def call(*args):
    cli.main([str(a) for a in args])


def test_a_prompt_is_drawn_and_drawn_again(run, tmp_path, capsys):
    out = tmp_path / "x.png"
    call("sample", run, "--prompt", "a red circle", "a Blue square.", "--n", 3, "--steps", 2, "--out", out)
    recipe = pictures.read_recipe(out)
    assert recipe["prompt"] == ["a red circle", "a Blue square."]
    assert (recipe["w"], tuple(recipe["between"]), recipe["sampler"]) == tuple(shapes.SAMPLING.values())
    call("reproduce", out)
    assert "the same bytes" in capsys.readouterr().out


@pytest.mark.parametrize("other", [("--between", 0.2, 0.5), ("--sampler", "ddim"), ("--w", 1)])
def test_how_a_run_is_sampled_is_its_own_until_it_is_named(run, tmp_path, other):
    always = ("--prompt", "a red circle", "--n", 1, "--steps", 3)
    own = (
        "--w",
        shapes.SAMPLING["w"],
        "--between",
        *shapes.SAMPLING["between"],
        "--sampler",
        shapes.SAMPLING["sampler"],
    )
    drawn = {}
    for name, how in (("silent", ()), ("own", own), ("other", other)):
        call("sample", run, *always, *how, "--out", tmp_path / f"{name}.png")
        drawn[name] = pictures_of(tmp_path / f"{name}.png")
    assert torch.equal(drawn["silent"], drawn["own"]) and not torch.equal(drawn["silent"], drawn["other"])


def test_a_first_step_from_noise_alone_is_not_guided(run):
    """A picture at one evaluation is the same at any scale, and is not at two."""
    model = Run.open(run).model()
    spoken = model.given(text=["a red circle"])
    one, two = ([shapes.sampled(spoken, model, 1, 0, w=w, nfe=n) for w in (1.0, 2.0, 9.0)] for n in (1, 2))
    assert torch.equal(one[0], one[1]) and torch.equal(one[1], one[2])
    assert not torch.equal(two[0], two[1]) and not torch.equal(two[1], two[2])


def test_unknown_words_may_be_left_out(run, tmp_path):
    for name, prompt in (("known", "a red circle"), ("more", "a shiny red circle !")):
        call(
            "sample", run, "--prompt", prompt, "--any-words", "--n", 1, "--steps", 2, "--out", tmp_path / f"{name}.png"
        )
    known, more = (pictures_of(tmp_path / f"{name}.png") for name in ("known", "more"))
    assert torch.equal(known, more)


def pictures_of(path):
    from PIL import Image

    with Image.open(path) as image:
        return torch.tensor(list(image.convert("RGB").tobytes()))


MISUSE = {
    "empty prompt": (["--prompt", ""], "a caption needs words, got an empty one"),
    "many words": (["--prompt", "red " * 10_000], "--prompt may have 24 words, got one with 10,000"),
    "unknown words": (["--prompt", "a crimson blob"], "unknown words 'blob', 'crimson': this model knows a, an, one"),
    "no known word": (["--prompt", "crimson blob", "--any-words"], "no word of 'crimson blob' is known: this model"),
    "w is nan": (["--prompt", "a red circle", "--w", "nan"], "w must be a finite number, got nan"),
    "lengths differ": (
        ["--prompt", "a red circle", "a star", "--label", "1", "2", "3"],
        "--prompt has 2 values and --label 3",
    ),
    "a label": (["--label", "1"], "unknown condition 'label': DiT takes text"),
    "w alone": (["--w", "2"], "w=2 guides towards what the model is told: say what with --prompt"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_what_is_misused_is_one_sentence(name, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = MISUSE[name]
    with pytest.raises(SystemExit) as stop:
        call("sample", run, "--n", 2, "--steps", 2, *args)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.png")), "nothing was written"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"net": "mmdit"}, "net must be 'dit' or 'unet', got 'mmdit'"),
        ({"net": "mmdit", "steps": 3}, "net must be 'dit' or 'unet', got 'mmdit'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_trained_is_named_before_the_codec_is(how, message, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes.latents, "train_autoencoder", lambda *_, **__: pytest.fail("the codec is trained"))
    with pytest.raises(ValueError, match=message):
        shapes.train(tmp_path, **how)


@pytest.mark.parametrize("n", [0, -3])
def test_no_captions_measure_nothing(n, run, capsys):
    with pytest.raises(SystemExit):
        call("evaluate", run, "--n", n)
    assert capsys.readouterr().err == f"suffuse: --n must be at least 1, got {n}\n"


def test_a_model_that_ships_goes_by_its_name_and_nothing_is_written_into_it(run, tmp_path, monkeypatch, capsys):
    assert judges.judge("use") and judges.judge("held_out")  # kept from here on: the zoo is another below
    copy, shipped = tmp_path / "run", tmp_path / "zoo" / "shapes"
    shutil.copytree(run, copy)
    (copy / "metrics.jsonl").write_text('{"samples": 8, "loss": 1.0}\n')
    shapes.ship(Run.open(copy), shipped)
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "zoo" / "__init__.py"))
    monkeypatch.setattr(shapes, "PROMPTS", shapes.PROMPTS[:1])
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in shipped.rglob("*") if p.is_file()}
    assert {p.dtype for p in load("shapes").net.parameters()} == {torch.float32}
    call("sample", "shapes", "--prompt", "a red circle", "--n", 1, "--steps", 1)
    call("evaluate", "shapes", "--n", 2)
    report = (tmp_path / "runs" / "shapes" / "report.html").read_text()
    assert shapes.PROMPTS[0] in report and "accuracy against pictures seen" not in report, "nobody looked"
    assert {p: p.read_bytes() for p in shipped.rglob("*") if p.is_file()} == before
    shutil.copy(copy / "run.json", tmp_path / "runs" / "shapes")
    with pytest.raises(SystemExit):
        call("evaluate", "shapes", "--n", 2)
    assert "runs/shapes holds a run of your own: name another folder with --out" in capsys.readouterr().err
    call("evaluate", "shapes", "--n", 2, "--out", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "report.html").exists()


@pytest.mark.parametrize(("name", "met", "looks"), [("shapes", 0.6, 16), ("shapes-unet", 0.4, 4)])
def test_a_model_that_ships_shows_what_it_is_told(name, met, looks):
    """Captions with kept-out combinations, half the evaluations of the reported number, read by the held-out judge."""
    made, asked = Run.open(name), captions(32, 77, held_out=True)
    model = made.model()
    text = model.conditions["text"]
    ids = text.ids(asked, length=shapes.WORDS)
    spoken, deaf = (model.given(text=told) for told in (ids, ids.roll(1, 0)))
    right, wrong = (
        judges.judge("held_out").match(asked, decoded(model, shapes.sampled(said, model, 32, 3, nfe=10)))
        for said in (spoken, deaf)
    )
    assert right.all.float().mean() >= met and wrong.all.float().mean() <= 0.1
    assert made.ships and (made.path / "metrics.jsonl").read_text().count('"match"') == looks


def test_a_model_without_text_says_what_it_takes(tmp_path, capsys):
    from suffuse.recipes import digits

    digits.train(tmp_path / "digits", steps=1, batch_size=4, progress=False)
    with pytest.raises(SystemExit):
        call("sample", tmp_path / "digits", "--prompt", "a star", "--out", tmp_path / "x.png")
    assert "this model is not told text: it takes label" in capsys.readouterr().err


def test_the_evaluation_of_real_scenes_is_the_judges_ceiling(run, tmp_path, monkeypatch):
    """Scenes in place of samples come out as the judge's own ceiling, everything else the same."""
    made = Run.open(run)
    (run / "metrics.jsonl").write_text(json.dumps({"samples": 8} | dict.fromkeys(shapes.PROBED, 0.5)) + "\n")

    asked = []
    turn = iter([True, False, True])

    def noise_or_real(x, *, first, seed, **_):
        if first == 0:
            noise_or_real.held = next(turn)
        return Scenes(seed, counts=(0.0, 1.0), held_out=noise_or_real.held, identical=0.0, full=True)(
            first, len(x)
        ).images

    with monkeypatch.context() as now:
        now.setattr("suffuse.recipes.draw.BATCH", 200)
        now.setattr(shapes, "decoded", lambda _model, x: x)
        now.setattr("suffuse.sample", lambda d, x, **how: asked.append(len(x)) or noise_or_real(x, **how))
        result = shapes.evaluate(made, tmp_path, n=240)
    assert asked == [200, 40] * 3
    for name in (*shapes.ASKS, "real"):
        assert result[name]["measured"]["match"]["value"] >= 0.97
    assert result["held_out"]["measured"] == result["real"]["measured"] == result["unguided"]["measured"]
    spec = parse([f["caption"] for f in result["failures"]] or ["a star"])
    assert len(spec) == max(1, len(result["failures"]))
    assert sum(m["n"] for m in result["combinations"].values()) >= 240, "each caption has one at least"
    assert all((SHAPES.index(k.split()[1]) + COLOURS.index(k.split()[0])) % 6 == 0 for k in result["combinations"])
    report = shapes.pictures_of(made, result | {"w": 3.0}, tmp_path, each=1)
    text = report.read_text()
    assert "evaluations (ddpm, w=3 at times 0 to 0.95);" in text
    assert pictures.read_recipe(tmp_path / "samples.png")["w"] == 3
    assert "accuracy against pictures seen" in text
    assert text.count("data:image/png;base64,") >= 2 and all(p in text for p in shapes.PROMPTS)


def test_what_is_measured_is_asked_of_scenes_that_no_training_drew(run):
    for recipe in (shapes, latents):
        seed = inspect.signature(recipe.evaluate).parameters["seed"].default
        asked = Scenes(seed, counts=(0.0, 1.0), held_out=False, identical=0.0, full=True)(0, 96).images
        trained = Scenes(Run.open(run).settings["seed"] + 1)(0, 96).images
        assert not (asked == trained).flatten(1).all(1).any(), "number for number they were the same scenes"


def test_the_probe_sees_binding_where_there_is_some():
    """A model that knows the picture of each true caption binds; one that is deaf does not."""
    model = shapes.build()
    model.codec = SimpleNamespace(
        encode=lambda x, seed: FOLD(x)[:, :8], decode=lambda z: torch.zeros(len(z), 3, 32, 32)
    )
    text = model.conditions["text"]
    found = shapes.probe(model, text=text, n=8, nfe=2)
    assert found["bind_colour"] == found["bind_order"] == found["bind_axis"] == 0, "a fresh network says 0 to all"

    scenes = Scenes(7_000_003, counts=(0.0, 1.0), identical=0.0, full=True)(0, 16)
    truth = {tuple(row.tolist()): x for row, x in zip(text.ids(scenes.captions, length=24), scenes.images, strict=True)}

    class Knowing(torch.nn.Module):
        """Answers the velocity of the picture it remembers for a caption, and of grey for any other."""

        def forward(self, x, t, text):
            x0 = torch.stack([truth.get(tuple(row.tolist()), torch.zeros(3, 32, 32)) for row in text])
            t = t.view(-1, 1, 1, 1)
            return (x - (1 - t) * x0) / t - x0

    told = {"condition": model.conditions, "shape": (3, 32, 32)}
    knowing = Denoiser(Knowing(), model.schedule, predicts="velocity", **told)
    seen = shapes.probe(knowing, text=text, n=8, nfe=2)
    assert min(seen["bind_colour"], seen["bind_order"], seen["bind_axis"]) > 0.1
    assert set(found) == {"bind_colour", "bind_order", "bind_axis", *shapes.PROBED}


def test_scenes_are_drawn_anew_and_their_latents_are_denoised_told_their_captions(run):
    """A network that gives away what it is asked: latents of its scenes at the time near 0, and its scenes' words."""
    model, asked = Run.open(run).model(), []
    net = model.net

    class Asked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t, text):
            asked.append((x, t, text))
            return self.net(x, t, text=text)

    loss = shapes._Loss(5, 0.0, model, ("net.blocks.2", 192))
    told = Denoiser(Asked(), model.schedule, predicts="velocity", condition=model.conditions)
    items = torch.tensor([40, 41, 7])
    plain = SimpleNamespace(encode=lambda x, seed: 3 * FOLD(x)[:, :8])
    loss._codec = (plain, model.conditions["text"])
    torch.manual_seed(0)
    with torch.no_grad():
        assert loss(told, {"item": items}).shape == (3,)
    (x, t, text) = asked[0]
    drawn = Scenes(5)[items]
    z = plain.encode(drawn.images, 40)
    assert text.tolist() == model.conditions["text"].ids(drawn.captions, length=shapes.WORDS).tolist()
    t = t.view(-1, 1, 1, 1)
    eps = (x - (1 - t) * z) / t
    assert abs(eps.mean()) < 0.1 and eps.std().item() == pytest.approx(1, abs=0.1), "what is left is noise"


def test_what_ships_is_the_run_in_bf16(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "metrics.jsonl").write_text(json.dumps({"samples": 8, "match": 0.5}) + '\n{"samples": 9}\n')
    shapes.ship(Run.open(copy), tmp_path / "shipped")
    shipped = Run.open(tmp_path / "shipped")
    a, b = Run.open(copy).model(), shipped.model()
    for (name, p), q in zip(a.net.named_parameters(), b.net.parameters(), strict=True):
        assert q.dtype == torch.bfloat16, name
        torch.testing.assert_close(p, q.float(), rtol=2**-8, atol=0)
    kept = read_tensors(tmp_path / "shipped" / "model" / "codec" / "codec.safetensors")
    assert {v.dtype for v in kept.values()} == {torch.bfloat16} and b.codec.scale == a.codec.scale
    assert shipped.settings == Run.open(copy).settings
    assert (tmp_path / "shipped" / "metrics.jsonl").read_text().count("\n") == 1


def test_the_judge_that_watches_is_not_the_one_that_reports(monkeypatch, run, tmp_path):
    used = []
    known = judges.judge
    monkeypatch.setattr(judges, "judge", lambda which="use": used.append(which) or known(which))
    model = Run.open(run).model()
    shapes.probe(model, text=model.conditions["text"], n=4, nfe=1)
    assert used == ["use"]
    result = shapes.evaluate(Run.open(run), tmp_path, n=4, nfe=1)
    assert used == ["use", "held_out"]
    assert result["held_out"]["measured"]["match"]["value"] == 0, "a model trained for a moment meets no caption"
    assert [f["number"] for f in result["failures"]] == [0, 1, 2, 3] and (tmp_path / "failures.png").exists()
