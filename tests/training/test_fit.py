"""`fit` trains, resumes bit for bit, keeps the last good checkpoint, and names what went wrong."""

import functools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from suffuse import Denoiser, fit, losses, noise, oracle, schedules
from suffuse.nets import MLP, Label
from suffuse.training import NotFiniteError
from suffuse.training.ema import EMA
from suffuse.training.files import read_tensors
from suffuse.training.fit import _rate

LOSS = functools.partial(losses.denoising, dropout=0.1)


def _data(n=50):
    return {"x": noise((n, 2), seed=0), "label": torch.arange(n) % 3}


def _model(seed=0):
    torch.manual_seed(seed)
    return Denoiser(MLP(2, width=16, depth=2, conditions={"label": Label(3)}), schedules.Linear(), "velocity")


def _weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def test_a_network_learns_the_exact_velocity_of_a_gaussian():
    data = {"x": 0.5 + 0.3 * noise((4000, 2), seed=0)}
    torch.manual_seed(0)
    model = Denoiser(MLP(2, width=64, depth=2), schedules.Linear(), "velocity")
    done = fit(losses.denoising, data, model, steps=500, batch_size=256, lr=3e-3, ema=0.98, progress=False)
    truth = oracle.Gaussian([0.5, 0.5], 0.09, schedule=schedules.Linear())
    errors = []
    for t in (0.2, 0.5, 0.8):
        alpha, sigma = 1 - t, t
        x = alpha * (0.5 + 0.3 * noise((500, 2), seed=1)) + sigma * noise((500, 2), seed=2)
        with torch.no_grad():
            p, q = done.ema(x, t), truth(x, t)
        errors.append(((p.eps - p.x0) - (q.eps - q.x0)).square().mean().sqrt() / (q.eps - q.x0).square().mean().sqrt())
    assert max(errors) < 0.1


def test_the_same_seed_trains_the_same_network_and_the_callers_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng([]):
            model = _model()
        fit(LOSS, _data(), model, steps=12, batch_size=8, seed=seed, progress=False)
        runs.append(_weights(model))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    whole = _model()
    done = fit(LOSS, _data(), whole, steps=30, batch_size=8, progress=False, out=tmp_path / "whole", log_every=5)

    class Stop(Exception):
        pass

    calls = []

    def stopping(model, batch):
        calls.append(1)
        if len(calls) == 18:
            raise Stop
        return LOSS(model, batch)

    part = _model()
    with pytest.raises(Stop):
        fit(
            stopping,
            _data(),
            part,
            steps=30,
            batch_size=8,
            progress=False,
            out=tmp_path / "part",
            checkpoint_every=0.0,
            log_every=5,
        )
    again = _model(seed=9)
    resumed = fit(
        LOSS, _data(), again, steps=30, batch_size=8, progress=False, out=tmp_path / "part", resume=True, log_every=5
    )
    assert torch.equal(_weights(again), _weights(whole))
    assert torch.equal(_weights(resumed.ema), _weights(done.ema))
    lines = [
        [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "part")
    ]
    assert lines[0] == lines[1] == [5, 10, 15, 20, 25, 30]


CHILD = """
import sys, torch
sys.path.insert(0, {tests!r})
from tests.training.test_fit import LOSS, _data, _model, _weights
from suffuse import fit
torch.set_num_threads(1)
model = _model()
print("go", flush=True)
fit(LOSS, _data(), model, steps=150, batch_size=8, progress=False, out={out!r}, resume=True, checkpoint_every=0.0)
torch.save  # never used: weights are compared through the checkpoint
"""


def kill_and_resume(folder, kills, seed):
    """Train in a subprocess, SIGKILL it at random moments, and let it finish."""
    chance = random.Random(seed)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    child = [sys.executable, "-c", CHILD.format(tests=root, out=str(folder))]
    killed = 0
    while True:
        process = subprocess.Popen(child, cwd=root, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        if killed < kills:
            time.sleep(chance.uniform(0.0, 0.6))
            process.send_signal(signal.SIGKILL)
        code = process.wait()
        process.stdout.close()
        if code == 0:
            return killed
        killed += 1


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    kills = int(os.environ.get("SUFFUSE_KILLS", "5"))  # 50 were run once by hand
    fit(LOSS, _data(), _model(), steps=150, batch_size=8, progress=False, out=tmp_path / "whole")
    count = 0
    for round_ in range(100):
        count += kill_and_resume(tmp_path / f"killed{round_}", min(3, kills - count), seed=round_)
        for name in ("model", "ema", "optimizer"):
            a, b = (
                read_tensors(tmp_path / which / "checkpoints" / "step-00000150" / f"{name}.safetensors")
                for which in ("whole", f"killed{round_}")
            )
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) for k in a), f"{name} differs after {count} kills"
        if count >= kills:
            break
    print(f"{count} kills, every resume bit-exact")
    assert count >= kills


def test_a_resumed_run_with_other_settings_is_refused(tmp_path):
    fit(LOSS, _data(), _model(), steps=5, batch_size=8, progress=False, out=tmp_path)
    with pytest.raises(ValueError, match=r"other settings: lr was 0.001, now 0.002"):
        fit(LOSS, _data(), _model(), steps=5, batch_size=8, lr=2e-3, progress=False, out=tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_noise_level(tmp_path):
    model = _model()
    calls = []

    def poisoned(model, batch):
        calls.append(1)
        if len(calls) >= 8:  # a row of NaN, as an overflowing network would make it
            model.net.register_forward_hook(lambda net, args, out: out.masked_fill(args[1][:, None] > 0.7, math.nan))
        return LOSS(model, batch)

    with pytest.raises(NotFiniteError, match=r"not finite at step 7, in \d of 8 rows, at noise levels t = 0\.[789]"):
        fit(poisoned, _data(), model, steps=20, batch_size=8, progress=False, out=tmp_path, precision="float32")
    assert all(p.isfinite().all() for p in model.net.parameters())
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000007"]


def test_a_gradient_that_is_not_finite_spoils_no_weights_and_no_checkpoint(tmp_path):
    model, calls = _model(), []

    def steep(model, batch):
        calls.append(1)
        loss = LOSS(model, batch)
        return loss + ((loss * 0).clamp(min=0).sqrt() if len(calls) >= 5 else 0)  # finite, with an infinite slope

    with pytest.raises(NotFiniteError, match="the gradient is not finite at step 4"):
        fit(steep, _data(), model, steps=20, batch_size=8, progress=False, out=tmp_path)
    assert all(p.isfinite().all() for p in model.net.parameters())
    saved = read_tensors(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(v.isfinite().all() for v in saved.values())


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path):
    fit(LOSS, _data(), _model(), steps=5, batch_size=8, progress=False, out=tmp_path)
    with pytest.raises(ValueError, match="holds checkpoints up to step-00000005: resume, or overwrite"):
        fit(LOSS, _data(), _model(), steps=5, batch_size=8, progress=False, out=tmp_path)
    fit(LOSS, _data(), _model(), steps=4, batch_size=8, progress=False, out=tmp_path, overwrite=True)
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole = _model()
    fit(LOSS, _data(), whole, steps=6, batch_size=8, progress=False, out=tmp_path, checkpoint_every=0.0)
    newest = tmp_path / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-50])
    again = _model(seed=3)
    with pytest.warns(UserWarning, match="going on from the one before"):
        fit(LOSS, _data(), again, steps=6, batch_size=8, progress=False, out=tmp_path, resume=True)
    assert torch.equal(_weights(again), _weights(whole))


def test_data_that_was_not_scaled_is_refused():
    with pytest.raises(ValueError, match=r"data\['x'\] runs from 0 to 255: scale it"):
        fit(LOSS, {"x": torch.tensor([[0.0, 255.0]])}, _model(), steps=1)
    with pytest.raises(TypeError, match=r"is torch.uint8: scale it"):
        fit(LOSS, {"x": torch.zeros(3, 2, dtype=torch.uint8)}, _model(), steps=1)


def test_data_that_is_not_finite_is_named(tmp_path):
    data = _data()
    data["weight"] = torch.ones(len(data["x"]))
    data["weight"][3] = math.nan

    def weighted(model, batch):
        return batch["weight"] * LOSS(model, {"x": batch["x"]})

    with pytest.raises(NotFiniteError, match="the data has values that are not finite in 'weight'"):
        fit(weighted, data, _model(), steps=20, batch_size=50, progress=False)
    data["x"][3] = math.nan
    with pytest.raises(ValueError, match=r"data\['x'\] must be finite, 1 of \d+ is not"):
        fit(LOSS, data, _model(), steps=20, batch_size=50, progress=False)


def test_the_rate_warms_up_and_falls_to_zero_counted_in_samples():
    assert _rate(0, 1000, 100, True) == pytest.approx(1 / 101)
    assert _rate(100, 1000, 100, True) == pytest.approx(1)
    assert _rate(550, 1000, 100, True) == pytest.approx(0.5)
    assert _rate(1000, 1000, 100, True) == pytest.approx(0, abs=1e-12)
    assert _rate(900, 1000, 100, False) == 1


def test_the_average_is_the_weighted_history():
    net = nn.Linear(2, 2, bias=False)
    history = [net.weight.detach().clone()]
    average = EMA(net, 0.9)
    for n in range(1, 30):
        with torch.no_grad():
            net.weight.copy_(torch.randn(2, 2))
        average.update(net, n)
        d = min(0.9, (1 + n) / (10 + n))
        history = [h * d for h in history] + [net.weight.detach() * (1 - d)]
    torch.testing.assert_close(average.net.weight, sum(history))
    with pytest.raises(ValueError, match=r"decay in \[0, 1\), got 1"):
        EMA(net, 1.0)


def test_progress_is_plain_lines_when_nobody_watches(capfd):
    fit(LOSS, _data(), _model(), steps=3, batch_size=8)
    err = capfd.readouterr().err
    assert "train 3/3  loss" in err and "samples/s" in err and "\x1b" not in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "must be at least 1, got 0"),
        ({"ema": 1.5}, "decay in"),
        ({"precision": "fp8"}, "'bf16' or 'fp16', got 'fp8'"),
    ],
)
def test_misuse_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        fit(LOSS, _data(), _model(), **({"steps": 3, "batch_size": 8, "progress": False} | change))
    with pytest.raises(ValueError, match="one first size"):
        fit(LOSS, {"x": torch.zeros(3, 2), "label": torch.zeros(4)}, _model(), steps=1)


class TestDenoisingLoss:
    @pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity", "edm"])
    def test_an_exact_network_has_the_smallest_expected_loss(self, predicts):
        """At the conditional mean the loss is its floor; any offset adds its square."""
        from tests.laws.test_round_trip import Wrapped

        schedule = schedules.Cosine()
        world = oracle.Gaussian(torch.tensor([0.5, -0.3]), 0.2, schedule=schedule)
        exact = Wrapped(world, predicts)
        off = Denoiser(lambda x, t: exact.net(x, t) + 0.5, schedule, predicts)
        batch = {"x": world.sample(4000, seed=0)}
        torch.manual_seed(0)
        floor = losses.denoising(exact, batch).mean()
        torch.manual_seed(0)
        above = losses.denoising(off, batch).mean()
        assert (above - floor).item() == pytest.approx(0.25, abs=0.04)

    def test_dropout_forgets_the_stated_share_of_labels(self):
        seen = []
        model = _model()
        model.net.register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs["label"]), with_kwargs=True)
        losses.denoising(model, _data(3000), dropout=0.25)
        assert (seen[0] == 3).float().mean().item() == pytest.approx(0.25, abs=0.03)

    def test_dropout_needs_a_null(self):
        model = Denoiser(MLP(2, conditions={"label": Label(3, optional=False)}), schedules.Linear())
        with pytest.raises(ValueError, match="no null for 'label'"):
            losses.denoising(model, _data(), dropout=0.5)

    @pytest.mark.parametrize("name", ["uniform", "stratified", "logit_normal"])
    def test_times_have_their_density(self, name):
        t = getattr(losses, name)(20000, torch.device("cpu"))
        z = t if name != "logit_normal" else torch.special.ndtr(torch.logit(t))
        assert t.min() > 0 and t.max() < 1
        counts = torch.histc(z, 10, 0, 1) / 20000
        torch.testing.assert_close(counts, torch.full((10,), 0.1), rtol=0, atol=0.012)
