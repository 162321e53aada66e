"""`suffuse restore` and `fill`: what is known stays as it is, and what was asked is what was measured."""

from types import SimpleNamespace

import pytest
import torch

from suffuse import cli, nets, operators, pictures
from suffuse.denoise import Denoiser
from suffuse.random import noise
from suffuse.recipes import restore
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import save
from suffuse.training.files import read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose network is small and untrained, but hears its label."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nets.UNet(1, 8, (1, 2), 1, (), conditions={"label": nets.Label(10)})
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    out = tmp_path_factory.mktemp("run")
    save(Denoiser(net, Linear(), predicts="velocity"), out / "model")
    Run(out, "digits", (1, 8, 8), {}, 0.0).write()
    return out


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "eight.png"
    pictures.save_png(pictures.grid(_picture(), 1, gap=0), path)
    return path


def _picture(side=8):
    at = torch.arange(side * side).reshape(1, 1, side, side).float()
    return (37 * at % 256) / 127.5 - 1


def call(*args):
    cli.main([str(a) for a in args])


def _pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8).reshape(image.size[::-1])


def test_what_was_not_measured_away_comes_back_to_the_last_bit(run, image, tmp_path):
    """The identity, without noise: the restored picture has the bytes of the old one."""
    out = tmp_path / "same.png"
    call("restore", image, "--operator", "identity", "--sigma", 0, "--method", "ddnm", "--model", run, "--nfe", 3,
         "--n", 2, "--out", out)  # fmt: skip
    assert torch.equal(_pixels(tmp_path / "same.after.png"), _pixels(image))
    told = pictures.read_recipe(out)
    assert told["shown"] == "before, measurement, samples" and told["made by"] == "suffuse restore"
    assert read_json(tmp_path / "same.png.json") == told
    assert _pixels(out).shape == (12 * (8 + 2 * 2), 12 * (4 * 10 + 2))


def test_a_picture_may_be_its_own_measurement(run, tmp_path, capsys):
    """A small picture is enlarged to one that, made small again, is nearly the same."""
    small = tmp_path / "small.png"
    pictures.save_png(pictures.grid(0.6 * _picture(4), 1, gap=0), small)
    call("restore", small, "--operator", "downsample:2", "--sigma", 0, "--method", "ddnm", "--measured", "--model", run,
         "--nfe", 4, "--n", 1, "--out", tmp_path / "large.png")  # fmt: skip
    after = _pixels(tmp_path / "large.after.png").float()[None, None] / 127.5 - 1
    again = operators.Downsample(2, (8, 8))(after)
    y = _pixels(small).float() / 127.5 - 1
    both = torch.stack([again.flatten(), y.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.95, "equal, but for what was clipped"
    assert pictures.read_recipe(tmp_path / "large.png")["shown"] == "measurement, samples"
    assert "PSNR" not in capsys.readouterr().out


def test_what_a_measured_picture_has_where_it_is_hidden_says_nothing(run, tmp_path):
    known, made = operators.Mask.box((8, 8), (2, 2, 3, 3)).known, []
    for name, value in (("black", -1.0), ("white", 1.0)):
        file = tmp_path / f"{name}.png"
        pictures.save_png(pictures.grid(torch.where(known, 0.6 * _picture(), value), 1, gap=0), file)
        call("restore", file, "--operator", "box:2,2,3,3", "--measured", "--method", "dps", "--model", run,
             "--nfe", 4, "--n", 1, "--out", tmp_path / f"{name}.out.png")  # fmt: skip
        made.append(_pixels(tmp_path / f"{name}.out.png"))
    assert torch.equal(*made)


def test_a_canvas_larger_than_the_model_is_restored_in_windows(run, tmp_path, monkeypatch):
    large, model, seen = tmp_path / "canvas.png", Run.open(run).model(), set()
    model.net.register_forward_pre_hook(lambda net, args: seen.add(args[0].shape[1:]))
    monkeypatch.setattr(Run, "model", lambda self: model)
    pictures.save_png(pictures.grid(_picture(16), 1, gap=0), large)
    for seed in (0, 1):
        call("restore", large, "--operator", "random:0.5", "--method", "repaint", "--model", run, "--size", 16,
             "--sigma", 0, "--nfe", 10, "--n", 1, "--seed", seed, "--out", tmp_path / f"c{seed}.png")  # fmt: skip
    a, b = (_pixels(tmp_path / f"c{seed}.after.png") for seed in (0, 1))
    known = operators.Mask.random((16, 16), keep=0.5, seed=0).known
    assert torch.equal(a[known], _pixels(large)[known])
    assert (a != b)[~known].float().mean() > 0.5 and seen == {(1, 8, 8)}


@pytest.mark.parametrize("method", restore.FILLS)
def test_fill_changes_what_is_white_in_the_mask_and_nothing_else(method, run, image, tmp_path):
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[2:6, 3:8] = True
    mask = tmp_path / "mask.png"
    pictures.save_png(pictures.grid(hole[None, None] * 2.0 - 1, 1, gap=0), mask)
    how = ["--model", run, "--method", method, "--nfe", 6, "--n", 1, "--label", 3]
    call("fill", image, "--mask", mask, *how, "--out", tmp_path / "a.png")
    call("fill", image, "--box", 2, 3, 4, 5, *how, "--out", tmp_path / "b.png")
    before, a, b = _pixels(image), _pixels(tmp_path / "a.after.png"), _pixels(tmp_path / "b.after.png")
    assert torch.equal(a[~hole], before[~hole])
    assert (a != before)[hole].float().mean() > 0.7 and a[hole].float().std() > 5, "painted, not left grey"
    assert torch.equal(a, b), "a mask and a box are two ways to say it"


def test_a_picture_grows_beyond_its_edges(run, image, tmp_path):
    call("fill", image, "--grow", 4, "--model", run, "--nfe", 5, "--n", 1, "--out", tmp_path / "grown.png")
    grown = _pixels(tmp_path / "grown.after.png")
    assert grown.shape == (16, 16) and torch.equal(grown[4:12, 4:12], _pixels(image))
    assert grown[:4].float().std() > 5


def test_the_label_is_heard(run, image, tmp_path):
    made = []
    for label in (1, 8):
        call("fill", image, "--box", 0, 0, 8, 6, "--model", run, "--nfe", 6, "--n", 1, "--label", label, "--w", 3,
             "--out", tmp_path / f"{label}.png")  # fmt: skip
        made.append(_pixels(tmp_path / f"{label}.after.png").float())
    assert (made[0] - made[1]).abs().max() > 10


def test_operators_are_named_as_they_act():
    """The part on the right acts first, and every name means the operator it says."""
    x = _picture(16)
    A = restore.operator("downsample:2 @ blur:1.0", (16, 16))
    want = operators.Downsample(2, (16, 16))(operators.GaussianBlur(1.0)(x))
    torch.testing.assert_close(A(x), want, rtol=0, atol=0)
    said = {
        "identity": operators.Identity(),
        "blur:2": operators.GaussianBlur(2.0),
        "motion:5,30.5": operators.MotionBlur(5, 30.5),
        "downsample:2": operators.Downsample(2, (16, 16)),
        "grey": operators.Greyscale(),
        "random:0.3": operators.Mask.random((16, 16), keep=0.3, seed=0),
        "box:1,2,3,4": operators.Mask.box((16, 16), (1, 2, 3, 4)),
        "text:a": operators.Mask.text((16, 16), "a"),
        "radon:4": operators.Radon(4, (16, 16)),
        "fourier:0.5": operators.MaskedFourier.columns((16, 16), keep=0.5, seed=0),
        "hdr:1.5": operators.HighDynamicRange(1.5),
        "phase:2": operators.PhaseRetrieval(2.0),
    }
    assert [name.partition(":")[0] for name in said] == list(restore.OPERATORS)
    for name, made in said.items():
        colours = 3 if name == "grey" else 1
        y = restore.operator(name, (16, 16))(x.expand(2, colours, 16, 16))
        assert torch.equal(y, made(x.expand(2, colours, 16, 16))) and y.abs().max() > 0, name


def test_a_seam_is_a_jump_along_the_edge_of_the_hole():
    """Of slopes 1 down and 2 across, their mean; where what is outside is raised by 4: |1 +- 4| and |2 +- 4|."""
    known = operators.Mask.box((16, 16), (4, 4, 8, 8)).known
    slope = (torch.arange(16.0)[:, None] + 2 * torch.arange(16.0)).expand(2, 3, 16, 16) / 32
    torch.testing.assert_close(restore.seams(slope, known), torch.full((2,), 1.5 / 32))
    torch.testing.assert_close(
        restore.seams(torch.where(known, slope, slope + 4 / 32), known), torch.full((2,), 4 / 32)
    )


MISUSED = {
    "unknown operator": (["restore", "IMAGE", "--operator", "fog:2"], "unknown operator 'fog'"),
    "too many values": (["restore", "IMAGE", "--operator", "blur:2,3"], "blur takes 1 values after a colon"),
    "no number": (["restore", "IMAGE", "--operator", "blur:much"], "blur takes float after a colon"),
    "does not fit": (["restore", "IMAGE", "--operator", "grey"], "Greyscale mixes 3 channels"),
    "box outside": (["restore", "IMAGE", "--operator", "box:4,4,8,8"], "does not lie within 8 x 8"),
    "nonlinear": (
        ["restore", "IMAGE", "--operator", "hdr:2"],
        "mmps needs a linear operator, and HighDynamicRange(2) is none: take dps, flowchef, daps, pnpdm, reddiff, "
        "flowdps, resample",
    ),
    "no gradient": (["restore", "IMAGE", "--operator", "quantise:4"], "unknown operator 'quantise'"),
    "sigma 0": (
        ["restore", "IMAGE", "--operator", "blur:1", "--method", "mmps", "--sigma", "0"],
        "mmps divides by sigma",
    ),
    "no picture": (["restore", "NOPE", "--operator", "blur:1"], "there is no picture at"),
    "not a picture": (["restore", "TEXT", "--operator", "blur:1"], "is not a picture that can be read"),
    "no measurement": (
        ["restore", "IMAGE", "--operator", "radon:5", "--measured"],
        "does not measure square pictures",
    ),
    "small canvas": (["restore", "IMAGE", "--operator", "blur:1", "--size", "4"], "a canvas is at least that, got 4"),
    "nothing to fill": (["fill", "IMAGE"], "one of --mask, --box and --grow"),
    "two to fill": (["fill", "IMAGE", "--grow", "2", "--box", "1", "1", "2", "2"], "one of --mask, --box and --grow"),
    "all to fill": (["fill", "IMAGE", "--box", "0", "0", "8", "8"], "the mask hides 64 of 64"),
    "half a box": (["fill", "IMAGE", "--box", "0", "0", "8"], "got 3 numbers"),
    "no text": (["fill", "IMAGE", "--grow", "2", "--prompt", "a red circle"], "not told text"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_is_one_sentence_and_exit_code_2(name, run, image, tmp_path, capsys):
    args, message = MISUSED[name]
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    where = {"IMAGE": image, "NOPE": tmp_path / "nope.png", "TEXT": text}
    with pytest.raises(SystemExit) as stopped:
        call(*[where.get(a, a) for a in args], "--model", run, "--nfe", 2, "--out", tmp_path / "out.png")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and "Traceback" not in said, said
    assert not (tmp_path / "out.png").exists()


class Folds:
    """A latent is 2 x 2 pixels, and as wide encoders do it tells of all others too."""

    scale, factor, net = 1.0, 2, SimpleNamespace(channels=1)

    def encode(self, x, seed):
        return torch.nn.functional.pixel_unshuffle(x + x.mean((1, 2, 3), keepdim=True), 2)

    def decode(self, z):
        return torch.nn.functional.pixel_shuffle(z, 2)


@pytest.fixture(scope="module")
def latent():
    """A model of latents (4, 4, 4) of pictures 8 x 8, untrained."""
    net = nets.DiT(4, 1, 16, 1, 2)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Denoiser(net.eval(), Linear(), predicts="velocity", codec=Folds(), shape=(4, 4, 4))


@pytest.mark.parametrize("method", restore.FILLS)
def test_a_model_of_latents_fills_what_is_hidden_without_having_seen_it(latent, method):
    x, z = _picture(), noise((2, 4, 4, 4), 0)
    A = operators.Mask.box((8, 8), (1, 2, 3, 3))
    with torch.no_grad():
        made = restore.filled(latent, A, x, z, method=method, nfe=10, seed=0)
        other = restore.filled(latent, A, torch.where(A.known, x, 0.9), z, method=method, nfe=10, seed=0)
    assert torch.equal(made[:, :, A.known], x[:, :, A.known].expand(2, -1, -1))
    assert torch.equal(made, other), "what the hole held is not looked at"
    assert (made[0] - made[1])[:, ~A.known].abs().max() > 1e-3 and not torch.equal(made, x.expand(2, -1, -1, -1))


def test_cells_are_painted_of_which_a_pixel_is_hidden(latent, monkeypatch):
    seen = []
    monkeypatch.setattr(restore.inverse, "blended", lambda model, A, y, z, **how: (seen.append(A.known), z)[1])
    A = operators.Mask.box((8, 8), (1, 2, 3, 3))
    restore.filled(latent, A, _picture(), noise((1, 4, 4, 4), 0), method="blended", nfe=1, seed=0)
    assert (~seen[0]).nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    A = operators.Mask.box((8, 8), (3, 0, 3, 2))
    restore.filled(latent, A, _picture(), noise((1, 4, 4, 4), 0), method="blended", nfe=1, seed=0)
    assert (~seen[1]).nonzero().tolist() == [[1, 0], [2, 0]]


def test_a_mask_that_cuts_every_cell_is_filled_by_one_method(latent):
    known = torch.ones(8, 8, dtype=torch.bool)
    known[::2, ::2] = False
    A, z = operators.Mask(known), noise((1, 4, 4, 4), 0)
    with pytest.raises(ValueError, match=r"every cell of 2 x 2 pixels, .*: take the method ddnm"):
        restore.filled(latent, A, _picture(), z, method="repaint", nfe=4, seed=0)
    with torch.no_grad():
        made = restore.filled(latent, A, A(_picture()), z, method="ddnm", nfe=10, seed=0)
    assert torch.equal(A(made), A(_picture())) and (made - _picture())[:, :, ~known].abs().max() > 1e-3


@pytest.mark.parametrize("method", restore.METHODS)
def test_methods_that_are_recommended_work_through_a_decoder(latent, method):
    """What refuses a model of latents names those that do not."""
    x, A, z = 0.8 * _picture(), operators.Downsample(2, (8, 8)), noise((1, 4, 4, 4), 0)
    how = {"sigma": 0.1, "nfe": 2, "seed": 0}

    def act(name):
        with torch.no_grad():
            return restore.restored(latent, A, A(x), z, method=name, **how)

    try:
        assert act(method).shape == (1, 1, 8, 8)
    except ValueError as error:
        said = str(error)
        assert said.startswith(f"{method} needs a linear operator, and through a decoder none is: take ")
        assert set(said.partition(": take ")[2].split(", ")) == {
            "dps", "ddnm", "flowchef", "daps", "pnpdm", "reddiff", "flowdps", "resample"
        }  # fmt: skip
    else:
        assert method not in {"pigdm", "mmps", "mcg", "diffpir", "ddrm", "ddnm_plus", "repaint"}


def test_a_picture_of_latents_grows_by_whole_latents(latent, image, tmp_path, monkeypatch):
    """The error speaks of the number that was given."""
    made = SimpleNamespace(path=tmp_path, shape=(16, 2, 2))
    monkeypatch.setattr(restore, "_opened", lambda run: (made, latent, 1, 8))
    with pytest.raises(ValueError, match="a latent is 4 x 4 pixels: grow by a multiple of 2, got 5"):
        restore.fill("run", image, tmp_path / "out.png", grow=5)


def test_a_model_of_latents_restores_what_its_decoder_can_make(latent):
    """Measured without noise, decoded samples are what was measured."""
    x, A = 0.8 * _picture(), operators.Downsample(2, (8, 8))
    with torch.no_grad():
        made = restore.restored(latent, A, A(x), noise((2, 4, 4, 4), 0), method="resample", sigma=0.0, nfe=40, seed=0)
    assert made.shape == (2, 1, 8, 8) and (A(made) - A(x)).abs().mean() < 0.1
