"""The work-precision diagram: its numbers agree with declared orders, and its picture says what it is."""

from __future__ import annotations

import pytest
import torch

from suffuse import noise, pictures, sample, samplers, schedules
from suffuse.cli import main
from suffuse.recipes import precision


def test_errors_fall_as_the_order_says():
    found = precision.work_precision({"ddim": samplers.ddim(), "heun": samplers.heun()}, schedules.Linear(), n=64)
    assert sorted(found["heun"])[:2] == [3, 5], "a curve is drawn at the evaluations it spent: its last step takes one"
    for grid in precision.GRIDS:
        start = noise((64, 2), seed=1, dtype=torch.float64)
        model = precision.world(schedules.Linear())
        exact, x = sample(model, start, nfe=200), sample(model, start, sampler=samplers.ddim, steps=20, grid=grid)
        assert found["ddim"][20] <= 1.05 * (x - exact).square().mean().sqrt(), "the better of two grids"
    assert found["ddim"][20] / found["ddim"][60] == pytest.approx(3, rel=0.1)
    assert found["heun"][19] / found["heun"][59] == pytest.approx(9, rel=0.3), "10 steps and 30"


def test_the_command_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "NFE", (4, 8))
    monkeypatch.setattr(samplers, "rules", lambda: {"ddim": samplers.ddim(), "ddpm": samplers.ddpm()})
    out = tmp_path / "new" / "work.png"
    main(["samplers", "--plot", str(out)])
    assert "2 samplers" in capsys.readouterr().out, "the default and ddim: ddpm follows no flow"
    assert pictures.read_recipe(out)["made by"] == "suffuse samplers --plot"
