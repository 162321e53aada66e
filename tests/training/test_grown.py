"""`fit`, grown up: what costs less memory or time changes nothing else."""

import contextlib
import functools
import json

import pytest
import torch
from torch import nn

from suffuse import Denoiser, data, fit, losses, noise, schedules
from suffuse.nets import DiT, UNet
from suffuse.training import NotFiniteError
from suffuse.training.recompute import blocks, recomputed
from tests.training.test_fit import LOSS, _data, _model, _weights

QUIET = {"progress": False, "precision": "float32"}


def plain(model, batch):
    """A loss without draws."""
    return model(batch["x"], torch.full((len(batch["x"]),), 0.5)).x0.square().sum(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x, t):
        return self.inner(x)


class TestAccumulation:
    def test_the_parts_of_a_batch_add_up_to_it(self, tmp_path):
        found, lines = {}, {}
        for parts in (1, 4):
            model, out = Denoiser(Net(), schedules.Linear(), "v"), tmp_path / str(parts)
            fit(plain, {"x": noise((40, 2), seed=0)}, model, steps=10, batch_size=16, accumulate=parts, out=out,
                log_every=1, **QUIET)  # fmt: skip
            found[parts] = _weights(model)
            log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            lines[parts] = [(line["loss"], line["grad_norm"]) for line in log]
        torch.testing.assert_close(found[1], found[4], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.tensor(lines[1]), torch.tensor(lines[4]), rtol=1e-5, atol=1e-6)

    def test_every_part_has_noise_of_its_own(self):
        seen = []

        def loss(model, batch):
            seen.append((torch.rand(1).item(), batch["label"].tolist()))
            return LOSS(model, batch)

        fit(loss, _data(), _model(), steps=2, batch_size=8, accumulate=2, **QUIET)
        assert len({draw for draw, _ in seen}) == 4 and all(len(rows) == 4 for _, rows in seen)

    def test_it_must_divide_the_batch_and_stay_what_it_was(self, tmp_path):
        with pytest.raises(ValueError, match="divide the batch of 8 into equal parts, got 3"):
            fit(LOSS, _data(), _model(), steps=2, batch_size=8, accumulate=3)
        fit(LOSS, _data(), _model(), steps=2, batch_size=8, accumulate=2, out=tmp_path, **QUIET)
        with pytest.raises(ValueError, match="accumulate was 2, now None"):
            fit(LOSS, _data(), _model(), steps=2, batch_size=8, out=tmp_path, resume=True, **QUIET)


def _kept(net, x):
    """Numbers that the forward pass keeps for the backward one."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(v.numel()) or v, lambda v: v):
        net(x, torch.full((len(x),), 0.5))
    return sum(kept)


class TestGradientCheckpointing:
    NETS = {
        "dit": lambda: DiT(1, patch=2, width=32, depth=6, heads=2, dropout=0.2),
        "unet": lambda: UNet(1, width=16, multipliers=(1, 2), blocks=1, dropout=0.2),
    }

    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_it_trains_the_same_bits(self, name, precision):
        x = {"x": noise((20, 1, 8, 8), seed=0).clamp(-3, 3)}
        found = []
        for on in (False, True):
            torch.manual_seed(0)
            model = Denoiser(self.NETS[name](), schedules.Linear(), "velocity")
            fit(
                losses.denoising, x, model, steps=3, batch_size=4, precision=precision, progress=False,
                gradient_checkpointing=on,
            )  # fmt: skip
            found.append(_weights(model))
            assert all("forward" not in block.__dict__ for block in blocks(model.net)), "the network is as it was"
        assert torch.equal(*found)

    def test_it_keeps_less(self):
        net, x = self.NETS["dit"](), torch.zeros(8, 1, 16, 16)
        all_of_it = _kept(net, x)
        with recomputed(net, True):
            assert _kept(net, x) < all_of_it / 4

    def test_without_blocks_it_is_refused(self):
        model = Denoiser(Net(), schedules.Linear(), "v")
        with pytest.raises(ValueError, match=r"Net has no nn.ModuleList"):
            fit(plain, {"x": torch.zeros(4, 2)}, model, steps=1, batch_size=4, gradient_checkpointing=True, **QUIET)


class TestHalfPrecision:
    def test_fp16_learns_what_float32_learns(self):
        found = {}
        for precision in ("float32", "fp16"):
            model = _model()
            fit(LOSS, _data(), model, steps=60, batch_size=32, lr=5e-3, progress=False, precision=precision)
            torch.manual_seed(0)
            with torch.no_grad():
                found[precision] = losses.denoising(model, _data()).mean().item()
        torch.manual_seed(0)
        with torch.no_grad():
            start = losses.denoising(_model(), _data()).mean().item()
        assert found["fp16"] == pytest.approx(found["float32"], rel=0.05) and found["fp16"] < 0.9 * start

    def test_an_overflow_halves_the_scale_and_takes_no_step_and_a_resumed_run_knows_it(self, tmp_path):
        def run(out, stop_at, resume=False):
            calls, model = [4] if resume else [0], _model(seed=7 if resume else 0)

            def loss(model, batch):
                if calls[0] == stop_at:
                    raise InterruptedError
                calls[0] += 1
                big = 1e36 if calls[0] == 3 else 1e-2  # times a scale of 2^16: the third step overflows
                return LOSS(model, batch) * big

            with contextlib.suppress(InterruptedError):
                fit(
                    loss, _data(), model, steps=8, batch_size=8, out=tmp_path / out, resume=resume, precision="fp16",
                    progress=False, checkpoint_every=0.0, log_every=1,
                )  # fmt: skip
            return model

        whole = run("whole", None)
        run("part", 4)
        again = run("part", None, resume=True)
        lines = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
        scales = [line["scale"] for line in lines]
        assert scales == [65536.0, 65536.0, *[32768.0] * 6]
        assert torch.equal(_weights(whole), _weights(again))

    def test_a_step_that_overflows_changes_no_weight(self, tmp_path):
        model, seen = _model(), []

        def loss(model, batch):
            seen.append(_weights(model))
            return LOSS(model, batch) * (1e36 if len(seen) == 2 else 1e-2)

        fit(loss, _data(), model, steps=4, batch_size=8, progress=False, precision="fp16")
        assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])

    def test_gradients_that_never_become_finite_are_an_error(self):
        model = _model()

        def steep(model, batch):
            loss = LOSS(model, batch)
            return loss + (loss * 0).clamp(min=0).sqrt()

        with pytest.raises(NotFiniteError, match="the gradient is not finite at step 17"):  # 2^16 halved 17 times
            fit(steep, _data(), model, steps=40, batch_size=8, progress=False, precision="fp16")


class TestLossWithParameters:
    def test_they_are_trained_kept_and_taken_up_again(self, tmp_path):
        def made():
            torch.manual_seed(1)
            return losses.Uncertain(functools.partial(losses.denoising, dropout=0.1))

        options = {"batch_size": 8, "lr": 1e-2, "checkpoint_every": 0.0, "steps": 12, **QUIET}
        whole, model = made(), _model()
        fit(whole, _data(), model, **options)
        assert whole.linear.weight.abs().max() > 0.01
        stops, part = [], made()
        forward = part.forward

        def stopping(model, batch):
            stops.append(1)
            if len(stops) == 6:
                raise InterruptedError
            return forward(model, batch)

        part.forward = stopping
        with pytest.raises(InterruptedError):
            fit(part, _data(), _model(), out=tmp_path, **options)
        again, resumed = made(), _model(seed=5)
        fit(again, _data(), resumed, out=tmp_path, resume=True, **options)
        assert torch.equal(again.linear.weight, whole.linear.weight)
        assert torch.equal(_weights(resumed), _weights(model))
        with pytest.raises(ValueError, match="loss was 'Uncertain', now None"):
            fit(LOSS, _data(), _model(), out=tmp_path, resume=True, **options)


class TestData:
    def test_a_set_by_rows_trains_the_same_bits_as_its_tensors(self):
        found = []
        for given in (_data(), data.Tensors(_data()), data.draws(_data(), seed=0)):
            model = _model()
            fit(LOSS, given, model, steps=12, batch_size=8, **QUIET)
            found.append(_weights(model))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])

    def test_a_stream_goes_on_where_it_was(self, tmp_path):
        from tests.data.test_draws import Counted

        seen = {}

        def run(name, stop_at=None, out=None, resume=False):
            seen.setdefault(name, [])

            def loss(model, batch):
                if stop_at is not None and len(seen[name]) == stop_at:
                    raise InterruptedError
                seen[name].append(batch["x"].flatten().tolist())
                return (model(batch["x"] / 100) - 1).square().mean(1)

            torch.manual_seed(0)
            net = nn.Linear(1, 1)
            feed = data.draws(Counted(), seed=0, block=4)
            with contextlib.suppress(InterruptedError):
                fit(loss, feed, net, steps=9, batch_size=5, out=out, resume=resume, checkpoint_every=0.0, **QUIET)
            return net

        whole = run("whole")
        run("part", 4, out=tmp_path)
        again = run("part", out=tmp_path, resume=True)
        assert seen["part"] == seen["whole"] and torch.equal(whole.weight, again.weight)

    def test_a_checkpoint_of_before_has_no_position_and_is_taken_up_by_its_step(self, tmp_path):
        whole = _model()
        fit(LOSS, _data(), whole, steps=12, batch_size=8, **QUIET)
        calls = []

        def stopping(model, batch):
            calls.append(1)
            if len(calls) == 6:
                raise InterruptedError
            return LOSS(model, batch)

        options = {"steps": 12, "batch_size": 8, "out": tmp_path, "checkpoint_every": 0.0, **QUIET}
        with pytest.raises(InterruptedError):
            fit(stopping, _data(), _model(), **options)
        file = tmp_path / "checkpoints" / "step-00000005" / "state.json"
        about = json.loads(file.read_text())
        assert about.pop("position") == {"sample": 40}
        file.write_text(json.dumps(about))
        again = _model(seed=2)
        fit(LOSS, _data(), again, resume=True, **options)
        assert torch.equal(_weights(again), _weights(whole))


def test_tensorboard_has_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(LOSS, _data(), _model(), steps=6, batch_size=8, out=tmp_path, log_every=2, tensorboard=True, **QUIET)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "grad_norm", "lr"):
        assert [(e.step, e.value) for e in events.Scalars(name)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines
        ]
    for more in ({"tensorboard": True}, {"watch": lambda model: {}}):
        with pytest.raises(ValueError, match="write files: give fit a folder"):
            fit(LOSS, _data(), _model(), steps=6, batch_size=8, **more)


def test_nothing_grown_up_costs_a_step_its_bits(tmp_path):
    """The settings that a run of before was kept with, by name, and nothing more."""
    fit(LOSS, _data(), _model(), steps=2, batch_size=8, out=tmp_path, **QUIET)
    about = json.loads((tmp_path / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert set(about["settings"]) == {
        "steps", "batch_size", "lr", "weight_decay", "ema", "seed", "warmup", "decay", "optimizer", "clip",
        "precision", "items",
    }  # fmt: skip
