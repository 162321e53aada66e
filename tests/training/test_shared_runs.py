"""`suffuse sample` and `suffuse evaluate` in two processes: the samples of one, each made once."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from suffuse import cli
from suffuse.recipes import digits, toy
from suffuse.recipes.run import Run
from tests.training.processes import together

pytestmark = pytest.mark.processes


def test_a_picture_drawn_by_two_processes_is_that_of_one(tmp_path):
    digits.train(tmp_path / "run", steps=4, batch_size=16, progress=False)
    how = ["--n", "9", "--label", "3", "5", "--w", "2", "--sampler", "ddim", "--eta", "0.5", "--steps", "3"]
    pixels = []
    for n in ("1", "2"):
        out = tmp_path / f"{n}.png"
        command = [sys.executable, "-m", "suffuse", "sample", tmp_path / "run", *how, "--out", out, "--processes", n]
        said = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stderr
        assert said.stdout.count("9 samples") == 1
        with Image.open(out) as image:
            pixels.append(np.asarray(image.convert("L")).astype(int))
    assert np.abs(pixels[0] - pixels[1]).max() <= 1
    assert np.ptp(pixels[0]) > 100


def test_an_evaluation_is_sampled_by_two_processes_and_measured_by_one(tmp_path, monkeypatch):
    toy.train(tmp_path, steps=20, batch_size=64, progress=False)
    few = {name: toy.SAMPLERS[name] for name in ("ddim", "default")}
    monkeypatch.setattr(toy, "SAMPLERS", few)
    monkeypatch.setattr(toy, "pictures_of", lambda run, result: run.path)
    sample = toy.samplers.sample

    def counted(denoiser, noise, **how):
        with (tmp_path / "rows").open("a") as file:
            file.write(f"{len(noise)}\n")
        return sample(denoiser, noise, **how)

    monkeypatch.setattr(toy.samplers, "sample", counted)
    alone = toy.evaluate(Run.open(tmp_path), n=101)
    (tmp_path / "rows").unlink()
    first, second = together(lambda: cli.main(["evaluate", str(tmp_path), "--n", "101"]))
    assert first is None and isinstance(second, SystemExit) and second.code == 0
    assert sorted((tmp_path / "rows").read_text().split()) == ["50", "50", "51", "51"]
    shared = json.loads((tmp_path / "metrics.json").read_text())
    for name in few:
        for what, value in alone[name]["measured"].items():
            assert shared[name]["measured"][what]["value"] == pytest.approx(value["value"], rel=1e-4), (name, what)


def test_a_student_is_not_measured_by_several(tmp_path, capfd):
    about = {"recipe": "distil", "shape": [1, 8, 8], "settings": {}, "train_seconds": 0.0}
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert [said.code for said in together(lambda: cli.main(["evaluate", str(tmp_path)]))] == [2, 2]
    assert "leave out --processes" in capfd.readouterr().err
