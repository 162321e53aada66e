"""`suffuse panorama`, `anagram`, `texture`, and the scripts in examples/, as a person would use them."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from suffuse import Denoiser, cli, fields, joint, nets, noise, operators, pictures, sample, samplers, schedules
from suffuse.data.shapes import Frieze, parse
from suffuse.recipes import digits, frieze
from suffuse.recipes.run import Run
from suffuse.training import save

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits, trained for a moment."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    digits.train(out, steps=2, batch_size=8, progress=False)
    return out


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """The frieze recipe's own network, trained for two tiny steps: enough to be asked."""
    out = tmp_path_factory.mktemp("runs") / "frieze"
    call("train", "frieze", "--steps", 2, "--batch-size", 2, "--seed", 3, "--out", out)
    return out


def call(*args):
    cli.main([str(a) for a in args])


def test_an_anagram_is_written_with_its_views(run, tmp_path):
    out = tmp_path / "a.png"
    call("anagram", run, "--label", 6, 9, "--w", 2, "--n", 3, "--steps", 2, "--out", out)
    recipe = pictures.read_recipe(out)
    assert recipe["label"] == [6, 9] and recipe["views"] == ["identity", "rotate180"] and recipe["w"] == 2
    with Image.open(out) as image:
        seen = torch.tensor(list(image.convert("L").tobytes())).reshape(image.size[::-1])
    scale, cell = 6, 9 * 6
    rows = [seen[scale + k * cell : scale + k * cell + 48, scale : scale + 48] for k in range(2)]
    assert torch.equal(rows[1], rows[0].flip((0, 1))), "below, the first picture turned"


def test_a_panorama_goes_around(run, tmp_path, capsys):
    """Asked to, it has a window wherever one may begin; else the last ends at the edge."""
    out = tmp_path / "p.png"
    call("panorama", run, "--width", 24, "--steps", 1, "--out", out)
    assert "from 9 windows" in capsys.readouterr().out
    call("panorama", run, "--width", 24, "--wrap", "--n", 2, "--steps", 2, "--label", 3, "--out", out)
    with Image.open(out) as image:
        assert image.size == ((24 + 2) * 12, (2 * 9 + 1) * 12)
    assert pictures.read_recipe(out)["wrap"] is True and "from 12 windows" in capsys.readouterr().out
    call("panorama", run, "--width", 20, "--push", 0.1, "--steps", 2, "--label", 1, 5, "--out", out)
    assert pictures.read_recipe(out)["label"] == [1, 5]


def test_a_mesh_is_painted(coloured, tmp_path):
    out = tmp_path / "painted"
    prompt = "a striped blue background"
    call(
        *("texture", "cube", "--run", coloured, "--prompt", prompt, "--views", 2, "--size", 32),
        *("--texture", 24, "--steps", 1, "--out", out),
    )
    mesh = fields.read_mesh(out / "mesh.obj")
    assert len(mesh.faces) == 12
    with Image.open(out / "turntable.gif") as gif:
        assert gif.n_frames == 16 and gif.size == (128, 128)
    with Image.open(out / "mesh.png") as png:
        assert png.size == (24, 24) and len(png.getcolors(10000)) > 20


class _Believes(nn.Module):
    """Sure of one picture a label: a brightness of label/10 - 1/2 that rises to the right, more for higher labels."""

    conditions = {"label": nets.Label(10)}

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def picture(self, label, width=8):
        level = torch.where(label < 10, label / 10 - 0.5, 0.0)  # 10 is told nothing
        return level + self.slope * (level + 1) * torch.linspace(-1, 1, width)

    def forward(self, x, t, label):
        return (x - self.picture(label[:, None, None, None], x.shape[-1])) / t[:, None, None, None]


@pytest.fixture
def drawn(monkeypatch):
    """Commands ask a model that is sure of itself, and what they draw is kept."""
    usual, seen = pictures.grid, []

    def grid(x, *args, **how):
        seen.append(x)
        return usual(x, *args, **how)

    def believing(slope):
        model = Denoiser(_Believes(slope), schedules.Linear(), predicts="velocity")
        monkeypatch.setattr(Run, "model", lambda self: model)
        return model.net

    monkeypatch.setattr(pictures, "grid", grid)
    return seen, believing


def test_a_panorama_shows_its_labels_from_left_to_right_at_the_scale_asked(run, drawn, tmp_path):
    seen, believing = drawn
    believing(0.0)
    call("panorama", run, "--width", 40, "--height", 12, "--label", 2, 4, "--out", tmp_path / "p.png", "--n", 2)
    call("panorama", run, "--width", 40, "--label", 2, 4, "--w", 2, "--out", tmp_path / "p.png")
    plain, guided = seen
    assert plain.shape == (2, 1, 12, 40)
    for x, w in ((plain, 1), (guided, 2)):
        assert (x[..., :16] + 0.3 * w).abs().max() < 1e-3 and (x[..., -16:] + 0.1 * w).abs().max() < 1e-3
        assert ((x[..., 18:22] > -0.3 * w) & (x[..., 18:22] < -0.1 * w)).any(), "windows of both overlap"


def test_a_pushed_panorama_follows_its_middle_window(run, drawn, tmp_path):
    call("panorama", run, "--width", 20, "--push", 0.5, "--steps", 2, "--out", tmp_path / "p.png")
    windows, start = operators.Crops(8, 2, (8, 20)), noise((1, 1, 8, 20), seed=0)
    pushed = joint.syncdiffusion(Run.open(run).model(), windows, joint.look, w=0.5, anchor=3)
    torch.testing.assert_close(drawn[0][0], sample(pushed, start, sampler=samplers.ddim, steps=2))


def test_an_anagram_is_the_mean_of_what_each_view_is_told_turned_back(run, drawn, tmp_path):
    seen, believing = drawn
    net = believing(0.2)
    call("anagram", run, "--label", 1, 8, "--views", "identity", "mirror", "--n", 2, "--out", tmp_path / "a.png")
    call("anagram", run, "--label", 1, 8, "--views", "identity", "rotate90", "--w", 2, "--out", tmp_path / "a.png")
    one, eight = (net.picture(torch.tensor([label])).expand(8, 8) for label in (1, 8))
    first, second = seen
    mean = (one + eight.flip(1)) / 2
    for row, want in ((first[:2], mean), (first[2:], mean.flip(1))):
        assert (row - want).abs().max() < 1e-3
    nothing = net.picture(torch.tensor([10])).expand(8, 8)
    one, eight = (2 * x - nothing for x in (one, eight))
    assert (second[0, 0] - (one + eight.rot90(-1, (0, 1))) / 2).abs().max() < 1e-3


def test_a_mesh_is_painted_with_what_it_is_told(coloured, drawn, tmp_path):
    drawn[1](0.0)
    how = ["--run", coloured, "--views", 3, "--size", 32, "--texture", 16]
    for w in (1, 2):
        call("texture", "cube", *how, "--label", 7, "--w", w, "--out", tmp_path)
        with Image.open(tmp_path / "mesh.png") as png:
            (low, high), *_ = png.convert("RGB").getextrema()
        assert abs(low - (0.2 * w + 1) * 127.5) < 2 and high - low < 2


@pytest.mark.parametrize("command", ["panorama", "pushed", "anagram", "texture"])
def test_the_same_seed_draws_the_same_and_options_are_heard(command, request, tmp_path):
    """Each option of how, one at a time: another picture, and the first again."""
    made, out = (request.getfixturevalue("coloured" if command == "texture" else "run"), tmp_path / "x.png")
    start = {
        "panorama": ["panorama", made, "--width", 20, "--steps", 2],
        "pushed": ["panorama", made, "--width", 20, "--steps", 2, "--push", 0.5],
        "anagram": ["anagram", made, "--label", 1, 2, "--n", 2, "--steps", 2],
        "texture": ["texture", "cube", "--run", made, "--views", 2, "--size", 32, "--texture", 16, "--steps", 1],
    }[command]
    options = {
        "panorama": [["--seed", 1], ["--steps", 3], ["--stride", 3]],
        "pushed": [["--push", 5]],
        "anagram": [["--seed", 1], ["--steps", 3]],
        "texture": [["--seed", 1], ["--steps", 2], ["--views", 3], ["--size", 40], ["--texture", 24]],
    }

    def pixels(*more):
        call(*start, *more, "--out", out)
        with Image.open(out / "mesh.png" if command == "texture" else out) as image:
            return image.tobytes()

    first = pixels()
    assert pixels("--chunk", 2) == first if command in ("panorama", "texture") else pixels() == first
    for option in options[command]:
        assert pixels(*option) != first, option


@pytest.mark.parametrize("command", ["panorama", "pushed", "texture"])
def test_windows_are_looked_at_as_many_together_as_said(command, run, coloured, tmp_path, monkeypatch):
    model, rows = Run.open(coloured if command == "texture" else run).model(), []
    model.net.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    monkeypatch.setattr(Run, "model", lambda self: model)
    how = ["--steps", 1, "--chunk", 3, "--out", tmp_path / "x.png"]
    if command == "texture":
        call("texture", "cube", "--run", coloured, "--views", 1, "--size", 48, "--texture", 16, *how)
    else:
        call("panorama", run, "--width", 20, *(["--push", 0.5] if command == "pushed" else []), *how)
    assert max(rows) == 3 and sum(rows) > 3


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """A model of latents of 2 x 2 pixels each, and a codec with weights of its own."""
    out = tmp_path_factory.mktemp("runs") / "latent"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        codec = nets.LatentCodec(nets.Autoencoder(3, 4, 4, (1, 1)))
        net = nets.UNet(4, width=8, multipliers=(1,), blocks=1, attention=(), conditions={"label": nets.Label(3)})
    model = Denoiser(net, schedules.Linear(), predicts="velocity")
    model.codec = codec
    save(model, out / "model")
    Run(out, "latents", (4, 4, 4), {"sampler": "ddpm"}, 0.0).write()
    return out


@pytest.mark.parametrize("push", [0, 0.5])
def test_a_panorama_of_latents_is_decoded_window_by_window_and_averaged(latent, drawn, tmp_path, push):
    out, model = tmp_path / "p.png", Run.open(latent).model()
    call("panorama", latent, "--width", 20, "--steps", 2, "--chunk", 3, "--seed", 4, "--push", push, "--out", out)
    windows, start = operators.Crops(4, 1, (4, 10)), noise((1, 4, 4, 10), seed=4)
    if push:
        seen = lambda a, b: joint.look(model.codec.decode(a), model.codec.decode(b))  # noqa: E731
        made, how = joint.syncdiffusion(model, windows, seen, w=push, anchor=3), samplers.ddim
    else:
        made, how = joint.average(model, windows), samplers.ddpm
    z = sample(made, start, sampler=how, steps=2, seed=4)
    with torch.no_grad():
        x = model.codec.decode(windows(z)[0]).clamp(-1, 1)[None]
    torch.testing.assert_close(drawn[0][0], operators.Crops(8, 2, (8, 20)).pinv(x), rtol=1e-4, atol=1e-4)
    with Image.open(out) as image:
        assert image.size == ((20 + 2) * 12, (8 + 2) * 12)


LATENT = {
    "a width between latents": (
        ["panorama", "--width", 21],
        "--width must be a multiple of 2, the pixels of one latent",
    ),
    "a stride between latents": (["panorama", "--width", 20, "--stride", 3], "--stride must be a multiple of 2, the"),
    "no height": (["panorama", "--width", 20, "--height", 0], "at most the canvas, (0, 20), got (8, 8)"),
    "an anagram": (["anagram", "--label", 1, 2], "a turned latent is no latent of the turned picture"),
    "a texture": (["texture", "cube", "--run"], "what a camera sees of a latent is no latent"),
}


@pytest.mark.parametrize("name", LATENT)
def test_what_latents_are_not_for_is_one_sentence(name, latent, capsys):
    (command, *args), message = LATENT[name]
    with pytest.raises(SystemExit) as stopped:
        call(command, *([*args, latent] if command == "texture" else [latent, *args]))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1


MISUSE = {
    "views and labels": (
        ["anagram", "RUN", "--label", "1"],
        "--label has 1 values for 2 views: give each view its own",
    ),
    "nothing to show": (["anagram", "RUN"], "an anagram is told what to show in each view"),
    "an unknown view": (["anagram", "RUN", "--views", "identity", "rotate45", "--label", "1", "2"], "unknown view"),
    "no pictures": (["anagram", "RUN", "--label", "1", "2", "--n", "0"], "--n must be at least 1, got 0"),
    "too narrow": (["panorama", "RUN", "--width", "7"], "at most the canvas, (8, 7), got (8, 8)"),
    "a stride with gaps": (["panorama", "RUN", "--width", "20", "--stride", "9"], "or pixels are left out"),
    "grey for a texture": (["texture", "cube", "--run", "RUN"], "needs a model of square colour pictures"),
    "two things on one mesh": (
        ["texture", "cube", "--run", "COLOURED", "--prompt", "a red background", "a blue background"],
        "a texture is told one thing",
    ),
    "no mesh": (["texture", "none.obj", "--run", "COLOURED"], "No such file"),
    "unknown words": (["texture", "cube", "--run", "COLOURED", "--prompt", "a zebra"], "unknown words 'zebra'"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_one_sentence_and_exit_code_2(name, run, coloured, capsys):
    args, message = MISUSE[name]
    with pytest.raises(SystemExit) as stopped:
        call(*[{"RUN": run, "COLOURED": coloured}.get(arg, arg) for arg in args])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1


def test_the_run_that_a_texture_is_made_with_unless_told_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        call("texture", "cube", "--label", 1)
    assert "no run at runs/frieze: make it with `suffuse train frieze`, or name another" in capsys.readouterr().err


def test_a_trained_frieze_resumes_to_itself(coloured, monkeypatch):
    """And learns nothing anew."""
    before = (coloured / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(frieze, "crops", None)
    call("train", "frieze", "--steps", 2, "--batch-size", 2, "--seed", 3, "--resume", "--out", coloured)
    assert (coloured / "model" / "model.safetensors").read_bytes() == before
    settings = Run.open(coloured).settings
    assert settings["w"] == frieze.W and settings["seed"] == 3 and settings["batch_size"] == 2


def test_crops_show_what_their_captions_say():
    """Ground and style of the frieze they are of; and bare ground where no shapes are told of."""
    items = torch.arange(64)
    images, said = frieze.crops(3, items)
    truth = Frieze(3)[items].attributes
    spec = parse([text if text.startswith("shapes") else f"shapes on {text}" for text in said])
    assert torch.equal(spec.background, truth.background) and torch.equal(spec.style, truth.style)
    bare = torch.tensor([not text.startswith("shapes") for text in said])
    assert bare.sum() == 16
    mixed = (images - Frieze(3)[items].images).abs().amax((1, 2, 3)) > 0.1
    assert not mixed[~bare].any() and mixed[bare].float().mean() > 0.8, "shapes are left out of the bare ones alone"


def test_a_judge_says_of_its_lesson_what_was_done_to_it():
    """What is called a frieze's window is one, up to harmless variation; the rest is not."""
    torch.manual_seed(0)
    items = torch.arange(64)
    x, real, style, colour = frieze.lesson(5, items)
    clean, truth = frieze.bared(Frieze(5)[items], items % 8 == 0).images, Frieze(5)[items].attributes
    off = (x - clean).abs().mean((1, 2, 3))
    assert real[:32].all() and (~real[32:]).sum() > 20 and real[32:].any()
    assert off[real].mean() < 0.06 and off[~real].mean() > 0.12
    assert torch.equal(style, truth.style) and torch.equal(colour, truth.background)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("joint_*.py")))
def test_the_examples_run(name, run, coloured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = coloured if "texture" in name else run
    quick = ["--steps", "2"] + (["--size", "32", "--texture", "24", "--views", "2"] if "texture" in name else [])
    monkeypatch.setattr(sys, "argv", [name, *([str(chosen)] if "signal" not in name else []), *quick])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert list(tmp_path.iterdir())
