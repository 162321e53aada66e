"""The toy recipe: what it measures is right on a denoiser whose answer is known, and its commands work."""

import json

import pytest
import torch

from suffuse import cli, metrics, oracle, pictures, schedules, training
from suffuse.data import toys
from suffuse.recipes import toy


def call(*args):
    cli.main([str(a) for a in args])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "moons"
    call("train", "toy", "--data", "moons", "--steps", 40, "--out", out)
    return out


@pytest.mark.parametrize("name", toy.SAMPLERS)
def test_every_sampler_that_is_compared_reaches_the_floor_with_the_exact_denoiser(name):
    centres = toys.mode_centres(8, "ring").float()
    exact = oracle.Mixture(torch.full((8,), 1 / 8), centres, torch.full((8, 2), 0.01), schedule=schedules.Linear())
    x = toy.samples(exact, name, 512, 1)
    real, other = (toy.points("gaussians", 512, toy.FRESH + k) for k in (2, 3))
    floor = metrics.chamfer(other, real, reduce="sum").value
    assert metrics.chamfer(x, real, reduce="sum").value < 1.5 * floor


def test_a_run_is_measured_between_its_floor_and_chance(run, capsys):
    call("evaluate", run, "--n", 128)
    found = json.loads((run / "metrics.json").read_text())
    assert found["data"] == "moons" and {"floor", "chance", *toy.SAMPLERS} <= found.keys()
    floor, chance = (found[k]["measured"]["chamfer"]["value"] for k in ("floor", "chance"))
    assert floor < chance / 2
    for metric in toy.MEANING:
        assert all(found[k]["measured"][metric]["n"] == 128 for k in toy.SAMPLERS)
    assert (run / "report.html").read_text().count("data:image/png") == 3
    assert "Chance" in capsys.readouterr().out


def test_the_points_it_is_measured_against_were_not_trained_on(run):
    trained = toy.points("moons", 40 * toy.BATCH, 0)
    real = toy.points("moons", 512, toy.FRESH + 2)
    assert torch.cdist(real, trained).min() > 0


@pytest.mark.parametrize("data", toy.known())
def test_every_toy_has_points_of_about_unit_size(data):
    x = toy.points(data, 1000, 0)
    assert x.shape == (1000, 2) and 0.4 < x.std() < 3


def test_an_unknown_toy_says_which_there_are():
    with pytest.raises(ValueError, match="unknown toy 'swiss_roll': one of checkerboard, gaussians, moons"):
        toy.train("nowhere", data="swiss_roll")


def test_the_doctor_says_what_the_files_tell(run, tmp_path, capsys):
    call("doctor", run)
    assert "nothing to say against it" in capsys.readouterr().out
    toy.train(tmp_path / "r", data="moons", steps=2, ema=None, progress=False)
    call("doctor", tmp_path / "r")
    assert "kept no average of its weights" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_other_failures_are_not_hidden(monkeypatch, capsys):
    for error, stop in ((training.DiskFullError("no room for it"), SystemExit), (PermissionError("no"), OSError)):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(toy, "train", fail)
        with pytest.raises(stop):
            call("train", "toy")
    assert capsys.readouterr().err == "suffuse: no room for it\n"


def test_points_are_sampled_into_a_picture_that_is_made_again(run, tmp_path, capsys):
    out = tmp_path / "x.png"
    call("sample", run, "--n", 50, "--sampler", "ddim", "--steps", 4, "--out", out)
    assert pictures.read_recipe(out)["n"] == 50
    call("reproduce", out)
    assert "the same bytes" in capsys.readouterr().out
