"""Averages of weights: any length after training, and a validation loss that is the exact one of the oracle."""

import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from suffuse import Denoiser, fit, noise, oracle, schedules
from suffuse.nets import MLP
from suffuse.training import ModelFileError, PowerEMA, post_hoc_ema, validation
from suffuse.training.files import read_tensors
from suffuse.training.power_ema import combination, gamma
from tests.laws.test_round_trip import Wrapped
from tests.laws.worlds import PARAMETERIZATIONS
from tests.training.test_fit import LOSS, _data, _model, _weights

QUIET = {"progress": False, "precision": "float32"}


class TestPowerEMA:
    @pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
    def test_a_length_is_the_profiles_standard_deviation(self, length):
        tau, t = np.linspace(0, 1, 2_000_001)[1:], 1.0
        profile = tau ** gamma(length) / t
        profile /= profile.sum()
        mean = (tau * profile).sum()
        assert ((tau - mean) ** 2 * profile).sum() ** 0.5 == pytest.approx(length, rel=1e-4)

    @pytest.mark.parametrize("length", [0.0, 0.2887, 1.0])
    def test_no_profile_has_another_length(self, length):
        with pytest.raises(ValueError, match="length must be in"):
            PowerEMA(lengths=(length,))

    def test_what_was_kept_spans_itself(self):
        steps, gammas = [100, 200, 200, 300], [gamma(s) for s in (0.05, 0.1, 0.05, 0.1)]
        w, left = combination(steps, gammas, 300, gamma(0.1))
        assert w == pytest.approx([0, 0, 0, 1], abs=1e-9) and left < 1e-6

    def test_any_length_after_training_is_the_direct_one_to_a_thousandth(self, tmp_path):
        """One run keeps 0.05 and 0.10; others, with the same seed, keep each length directly."""
        lengths = (0.03, 0.05, 0.07, 0.1, 0.13, 0.18)
        steps = 300
        run = functools.partial(fit, LOSS, _data(), steps=steps, batch_size=16, lr=3e-3, **QUIET)
        kept = run(_model(), out=tmp_path / "kept", ema=PowerEMA(every=steps // 30))
        direct = run(_model(), out=tmp_path / "direct", ema=PowerEMA(lengths=lengths, every=steps))
        assert torch.equal(_weights(kept.model), _weights(direct.model)), "an average does not touch the training"
        start = _weights(_model())
        errors = {}
        for length in lengths:
            truth = _model(seed=3)
            folder = tmp_path / "direct" / "averages" / f"step-{steps:08d}"
            truth.net.load_state_dict(read_tensors(folder / f"ema-{length:g}.safetensors"))
            made = post_hoc_ema(tmp_path / "kept", _model(seed=4), length)
            truth = _weights(truth)
            errors[length] = ((_weights(made) - truth).norm() / (truth - start).norm()).item()
        print("\nrelative to what was learned:", {k: f"{v:.1e}" for k, v in errors.items()})
        assert max(errors.values()) < 1e-3, errors

    def test_an_earlier_end_and_a_length_out_of_reach(self, tmp_path):
        run = functools.partial(fit, LOSS, _data(), _model(), batch_size=16, decay=0.0, warmup=0, **QUIET)
        run(steps=60, out=tmp_path / "long", ema=PowerEMA(every=2))
        short = _model()
        fit(LOSS, _data(), short, steps=40, batch_size=16, decay=0.0, warmup=0, out=tmp_path / "short",
            ema=PowerEMA(every=2), **QUIET)  # fmt: skip
        early = post_hoc_ema(tmp_path / "long", _model(), 0.08, step=40)
        there = post_hoc_ema(tmp_path / "short", _model(), 0.08)
        torch.testing.assert_close(_weights(early), _weights(there), rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match=r"make an average of length 0.004 only to \d+%"):
            post_hoc_ema(tmp_path / "long", _model(), 0.004)
        with pytest.raises(ModelFileError, match="no snapshots in"):
            post_hoc_ema(tmp_path, _model(), 0.05)

    def test_a_resumed_run_has_the_same_averages(self, tmp_path):
        calls = []

        def stopping(model, batch):
            calls.append(1)
            if len(calls) == 8:
                raise InterruptedError
            return LOSS(model, batch)

        options = {"steps": 20, "batch_size": 8, "ema": PowerEMA(every=5), "checkpoint_every": 0.0, **QUIET}
        whole = fit(LOSS, _data(), _model(), out=tmp_path / "whole", **options)
        with pytest.raises(InterruptedError):
            fit(stopping, _data(), _model(), out=tmp_path / "part", **options)
        again = fit(LOSS, _data(), _model(seed=6), out=tmp_path / "part", resume=True, **options)
        assert torch.equal(_weights(whole.ema), _weights(again.ema))
        made = [_weights(post_hoc_ema(tmp_path / name, _model(), 0.07)) for name in ("whole", "part")]
        assert torch.equal(*made)
        with pytest.raises(ValueError, match="ema was"):
            fit(LOSS, _data(), _model(), out=tmp_path / "part", resume=True, **(options | {"ema": 0.999}))

    def test_a_run_begun_anew_forgets_the_snapshots_of_the_one_before(self, tmp_path):
        for steps in (20, 8):
            fit(LOSS, _data(), _model(), steps=steps, batch_size=8, out=tmp_path, overwrite=True,
                ema=PowerEMA(every=4), **QUIET)  # fmt: skip
        assert [f.name for f in sorted((tmp_path / "averages").iterdir())] == ["step-00000004", "step-00000008"]

    def test_it_needs_a_folder(self):
        with pytest.raises(ValueError, match="PowerEMA write files: give fit a folder"):
            fit(LOSS, _data(), _model(), steps=2, ema=PowerEMA())


class TestValidation:
    C, schedule = 0.6, schedules.VP()

    def _held(self, n=4000):
        return {"x": self.C**0.5 * noise((n, 2), seed=3)}

    @pytest.mark.parametrize("predicts", PARAMETERIZATIONS)
    def test_the_exact_model_has_the_exact_loss_of_every_noise_level(self, predicts):
        model = Wrapped(oracle.Gaussian(torch.zeros(2), self.C, schedule=self.schedule), predicts)
        found = validation(self._held(), bins=4, low=-4, high=4)(model)
        names = ["val_loss_-4_-2", "val_loss_-2_0", "val_loss_0_2", "val_loss_2_4"]
        assert list(found) == ["val_loss", *names]
        for k, name in enumerate(names):
            logsnr = torch.linspace(-4 + 2 * k, -2 + 2 * k, 201, dtype=torch.float64)
            alpha, sigma = self.schedule(self.schedule.time(logsnr))
            truth = (self.C / (alpha**2 * self.C + sigma**2)).mean().item()  # Var[x0 | x] / sigma^2
            assert found[name] == pytest.approx(truth, rel=0.05)
        assert found["val_loss"] == pytest.approx(sum(found[n] for n in names) / 4)

    def test_an_error_is_seen_at_its_noise_level(self):
        exact = Wrapped(oracle.Gaussian(torch.zeros(2), self.C, schedule=self.schedule), "v")
        noisy = Denoiser(
            lambda x, t: exact.net(x, t) + (self.schedule.logsnr(t) < 0)[:, None], self.schedule, "v"
        )  # off by 1 where there is more noise than signal
        look = validation(self._held(400), bins=2, low=-4, high=4)
        a, b = look(exact), look(noisy)
        assert b["val_loss_-4_0"] - a["val_loss_-4_0"] == pytest.approx(1, abs=0.15)
        assert b["val_loss_0_4"] == a["val_loss_0_4"]

    def test_two_looks_are_equal_and_the_batch_size_does_not_matter(self):
        torch.manual_seed(0)
        model = Denoiser(MLP(2, width=8, depth=1), self.schedule, "v")
        look = validation(self._held(100))
        torch.manual_seed(1)
        first = look(model)
        torch.manual_seed(2)
        assert look(model) == first
        assert validation(self._held(100), batch_size=7)(model) == pytest.approx(first, rel=1e-5)
        assert validation(self._held(100), seed=1)(model) != first

    def test_it_is_in_the_log_of_a_run_and_changes_no_bit_of_it(self, tmp_path):
        held = {"x": noise((30, 2), seed=5), "label": torch.arange(30) % 3}
        plain, watched = _model(), _model()
        fit(LOSS, _data(), plain, steps=8, batch_size=8, **QUIET)
        fit(LOSS, _data(), watched, steps=8, batch_size=8, out=tmp_path, watch=validation(held, bins=2),
            watch_every=4, **QUIET)  # fmt: skip
        assert torch.equal(_weights(plain), _weights(watched))
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]
        assert len([name for name in lines[0] if name.startswith("val_loss_")]) == 2

    def test_the_noisiest_bin_begins_where_the_schedule_ends(self):
        model = Denoiser(nn.Linear(2, 2), schedules.Discrete.scaled_linear(), "eps")
        model.net.forward = lambda x, t: torch.zeros_like(x)
        found = validation(self._held(50), bins=1)(model)
        assert "val_loss_-5.36_8" in found
        with pytest.raises(ValueError, match=r"high must be above, got -7"):
            validation(self._held(50), high=-7.0)(model)

    def test_misuse(self):
        with pytest.raises(ValueError, match="needs 'x' and conditions of one first size"):
            validation({"label": torch.zeros(3)})
        with pytest.raises(ValueError, match="bins >= 1"):
            validation(self._held(3), bins=0)
