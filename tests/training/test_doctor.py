"""The doctor speaks where something is wrong, and is silent where nothing is."""

import os
import re
import signal

import pytest
import torch

from suffuse import Denoiser, data, fit, noise, save, schedules
from suffuse.nets import MLP, Label
from suffuse.training import ModelFileError, Stopped, doctor
from tests.laws.worlds import SCHEDULES
from tests.training.test_fit import LOSS, _data, _model

QUIET = {"progress": False, "precision": "float32"}
FULL = 2 * torch.rand(100, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 1


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ((FULL + 1) / 2, r"as pictures in \[0, 1\] do: scale it to \[-1, 1\] by 2 x - 1"),
        (0.01 * FULL, "with standard deviation 0.00573: the noise, of 1, hides it"),
        (20 * FULL, "should be about 1; scale it down"),
        (torch.zeros(5, 2), "the data is 0 everywhere"),
        (torch.tensor([[0.0, float("nan")]]), "values that are not finite"),
    ],
)
def test_data_off_its_range(x, says):
    assert re.search(says, doctor.data_range(x) or "")


def test_data_in_its_range_is_fine():
    assert doctor.data_range(FULL) is None
    assert doctor.data_range(noise((50, 2), seed=0)) is None
    assert doctor.data_range(data.digits("train")["x"]) is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_ends_before_the_data_is_hidden(name):
    found = doctor.terminal_snr(SCHEDULES[name])
    assert (found is not None) == (name == "scaled-linear"), found
    assert found is None or ("ends at logsnr -5.3" in found and "6.8%" in found)


class TestDecay:
    def test_no_decay_or_nothing_but_warm_up(self):
        assert "decay=0" in (doctor.decay_never_happens(steps=100, batch_size=8, decay=0.0) or "")
        assert "warm-up lasts 900 samples" in (doctor.decay_never_happens(steps=100, batch_size=8, warmup=900) or "")
        assert doctor.decay_never_happens(steps=100, batch_size=8) is None

    @pytest.mark.parametrize(("done", "says"), [(50, "has not begun to fall"), (80, "has hardly fallen"), (100, None)])
    def test_a_run_that_was_stopped(self, done, says):
        found = doctor.decay_never_happens(steps=100, batch_size=8, decay=0.3, done=done)
        assert (found is None) if says is None else (says in (found or "") and f"step {done} of 100" in (found or ""))


def test_guidance_without_dropout():
    assert "dropout=0" in (doctor.guided_without_dropout({"dropout": 0.0}, 3.0) or "")
    assert doctor.guided_without_dropout({"dropout": 0.0}, 1.0) is None
    assert doctor.guided_without_dropout({"dropout": 0.1}, 3.0) is None


class TestExamine:
    def _run(self, folder, **options):
        done = fit(LOSS, _data(), _model(), steps=12, batch_size=8, out=folder, **(QUIET | options))
        return done

    def test_a_good_run_has_no_findings(self, tmp_path):
        save(self._run(tmp_path).ema, tmp_path / "model")
        assert doctor.examine(tmp_path) == []

    def test_the_last_steps_weights_in_place_of_their_average(self, tmp_path):
        save(self._run(tmp_path).model, tmp_path / "model")
        (found,) = doctor.examine(tmp_path)
        assert "weights of the last step, though the run kept their average (ema.safetensors)" in found

    def test_no_average_at_all_and_a_clipped_schedule(self, tmp_path):
        torch.manual_seed(0)
        net = MLP(2, width=8, depth=1, conditions={"label": Label(3)})
        model = Denoiser(net, schedules.Discrete.scaled_linear(), "v")
        fit(LOSS, _data(), model, steps=3, batch_size=8, out=tmp_path, ema=None, **QUIET)
        save(model, tmp_path / "model")
        first, second = doctor.examine(tmp_path)
        assert "ema=None" in first and "ends at logsnr -5.3" in second

    def test_a_stopped_run(self, tmp_path):
        def asking(model, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return LOSS(model, batch)

        with pytest.raises(Stopped):
            fit(asking, _data(), _model(), steps=12, batch_size=8, out=tmp_path, **QUIET)
        (found,) = doctor.examine(tmp_path)
        assert "stopped at step 1 of 12" in found

    def test_what_is_no_run(self, tmp_path):
        with pytest.raises(ModelFileError, match="holds neither checkpoints nor a model"):
            doctor.examine(tmp_path)
