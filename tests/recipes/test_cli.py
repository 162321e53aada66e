"""The command line, used as a person would: train a little, look, reproduce, and get things wrong."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from suffuse import cli, pictures
from suffuse.recipes import digits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run trained for a moment: enough to be sampled, not to be good."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    digits.train(out, steps=6, batch_size=16, progress=False)
    return out


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A run without label dropout: it has no null condition."""
    out = tmp_path_factory.mktemp("runs") / "blind"
    digits.train(out, steps=2, batch_size=16, dropout=0.0, progress=False)
    return out


def call(*args):
    cli.main([str(a) for a in args])


def test_a_picture_carries_its_recipe_and_is_made_again_byte_for_byte(run, tmp_path, capsys):
    out = tmp_path / "x.png"
    call(
        "sample",
        run,
        "--label",
        3,
        5,
        "--n",
        9,
        "--w",
        2,
        "--sampler",
        "ddim",
        "--eta",
        0.5,
        "--steps",
        3,
        "--out",
        out,
    )
    recipe = pictures.read_recipe(out)
    assert recipe == json.loads((tmp_path / "x.png.json").read_text())
    assert recipe["label"] == [3, 5] and recipe["w"] == 2.0 and recipe["eta"] == 0.5 and len(recipe["model_hash"]) == 16
    call("reproduce", out)
    assert (tmp_path / "x.again.png").read_bytes() == out.read_bytes()
    assert "the same bytes" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.size == ((3 * 9 + 1) * 12,) * 2


def test_samples_do_not_depend_on_how_many_are_drawn(run, tmp_path):
    for n in (4, 300):
        call("sample", run, "--n", n, "--steps", 2, "--label", 1, "--out", tmp_path / f"{n}.png")
    few, many = (torch.tensor(list(Image.open(tmp_path / f"{n}.png").convert("L").tobytes())) for n in (4, 300))
    few = few.reshape((2 * 9 + 1) * 12, -1)[12:108, 12:108]
    many = many.reshape(-1, (17 * 9 + 1) * 12)[12:108, 12:108]
    assert (few - many).abs().max() <= 1


def test_info_and_samplers_print(run, capsys):
    call("info", run)
    text = capsys.readouterr().out
    assert "UNet(Linear(), predicts velocity)" in text and "parameters" in text
    call("samplers")
    text = capsys.readouterr().out
    assert all(name in text for name in ("ddim", "ddpm", "dpmpp", "heun", "consistency"))


def test_a_trained_run_resumes_to_itself(run, capsys):
    before = (run / "model" / "model.safetensors").read_bytes()
    digits.train(run, steps=6, batch_size=16, resume=True, progress=False)
    assert (run / "model" / "model.safetensors").read_bytes() == before


MISUSE = {
    "no such run": (["sample", "nowhere"], "no run folder at nowhere: train one"),
    "steps 0": (["sample", "RUN", "--steps", "0"], "steps must be a whole number of at least 1, got 0"),
    "n 0": (["sample", "RUN", "--n", "0"], "--n must be at least 1, got 0"),
    "label 12": (["sample", "RUN", "--label", "12"], "label must be in 0..9, got 12"),
    "w without label": (
        ["sample", "RUN", "--w", "2"],
        "w=2 guides towards what the model is told: say what with --label",
    ),
    "w is nan": (["sample", "RUN", "--w", "nan", "--label", "1"], "w must be a finite number, got nan"),
    "w without null": (
        ["sample", "BLIND", "--w", "2", "--label", "1"],
        "w=2 needs a negative, and this model has no null",
    ),
    "unlabelled without null": (["sample", "BLIND"], "no null for 'label'"),
    "unknown sampler": (["sample", "RUN", "--sampler", "eulr"], "unknown sampler 'eulr': one of adams, bdia"),
    "order of nothing": (["sample", "RUN", "--order", "2"], "--order and --eta belong to a sampler"),
    "order of ddim": (
        ["sample", "RUN", "--sampler", "ddim", "--order", "2"],
        "ddim does not take 'order': it takes eta",
    ),
    "not a picture": (["reproduce", "RUN/run.json"], "is not a picture"),
    "no picture": (["reproduce", "RUN/none.png"], "No such file"),
    "evaluate nothing": (["evaluate", "nowhere"], "no run folder at nowhere"),
    "info of a model folder": (["info", "RUN/model"], "holds no run.json"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_what_is_misused_is_one_sentence_and_exit_code_2(name, run, blind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = MISUSE[name]
    with pytest.raises(SystemExit) as stop:
        call(*[a.replace("RUN", str(run)).replace("BLIND", str(blind)) for a in args])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.glob("*.png")), "nothing was written"


def test_a_picture_without_a_recipe_says_so(tmp_path, capsys):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(SystemExit):
        call("reproduce", tmp_path / "plain.png")
    assert "holds no recipe" in capsys.readouterr().err


def test_a_picture_of_other_weights_is_not_reproduced(run, blind, tmp_path, capsys):
    call("sample", run, "--n", 1, "--steps", 1, "--out", tmp_path / "x.png")
    with pytest.raises(SystemExit):
        call("reproduce", tmp_path / "x.png", "--run", blind)
    assert "the picture was made by" in capsys.readouterr().err


def test_importing_suffuse_imports_none_of_the_extras():
    heavy = ["diffusers", "transformers", "sklearn", "scipy", "matplotlib", "PIL", "rich", "tyro", "safetensors"]
    code = (
        f"import sys, suffuse as sf; sf.Denoiser, sf.sample, sf.guide, sf.oracle; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_whole_demo_runs_and_leaves_what_it_promises(tmp_path):
    """The real thing at a quarter of its length: files, keys and pictures. Quality: benchmarks/digits.py."""
    made = digits.train(tmp_path / "digits", steps=300, progress=False)
    result = digits.evaluate(made)
    report = digits.pictures_of(made, result)
    names = {p.name for p in report.parent.iterdir()}
    assert {
        "samples.png",
        "denoising.png",
        "denoising.gif",
        "loss.png",
        "metrics.json",
        "model",
        "report.html",
    } <= names
    saved = json.loads((report.parent / "metrics.json").read_text())
    for key in ("label_accuracy", "frechet_ratio", "precision", "recall", "memorised", "judge_accuracy"):
        assert saved[key]["n"] > 0 and saved[key]["interval"][0] <= saved[key]["value"] <= saved[key]["interval"][1]
    assert saved["nfe"] <= 20 and saved["label_accuracy"]["n"] == 1437 and saved["judge_accuracy"]["value"] > 0.95
    assert saved["label_accuracy"]["value"] > 0.5, "a quarter of the training already beats chance by far"
    page = report.read_text()
    call("reproduce", report.parent / "samples.png")
    assert (report.parent / "samples.again.png").read_bytes() == (report.parent / "samples.png").read_bytes()
    for name in ("denoising.png", "loss.png"):
        assert pictures.read_recipe(report.parent / name)["model_hash"] == saved["model_hash"]
    assert page.count("data:image/") == 4 and "http" not in page.replace("http-equiv", "")
