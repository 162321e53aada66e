"""What stops a run leaves it whole: a signal, a full disk; and what is not finite is traced to its layer."""

import errno
import math
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from suffuse import fit
from suffuse.training import DiskFullError, NotFiniteError, Stopped, files, state
from tests.training.test_fit import LOSS, _data, _model, _weights
from tests.training.test_grown import QUIET


class TestStop:
    CHILD = """
import signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is told to ignore it
sys.path.insert(0, {root!r})
from tests.training.test_fit import LOSS, _data, _model
from suffuse import fit
torch.set_num_threads(1)
model = _model()
done = []
def loss(model, batch):
    done.append(1)
    if len(done) == 5: print("go", flush=True)
    return LOSS(model, batch)
fit(loss, _data(), model, steps={steps}, batch_size=8, progress=False, out={out!r}, resume=True, precision="float32")
print("after")
"""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_the_run_well_and_it_goes_on_bit_for_bit(self, number, tmp_path):
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        code = self.CHILD.format(root=root, out=str(tmp_path / "part"), steps=20000)
        child = subprocess.Popen(
            [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "go\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0 and "after" not in out
        assert f"stopped by {number.name} after step " in err and "resume=True (--resume) to go on" in err
        (kept,) = (tmp_path / "part" / "checkpoints").iterdir()
        step = int(kept.name[5:])
        assert 5 <= step < 20000 and f"after step {step} of 20000" in err

    def test_what_was_stopped_goes_on_to_the_same_bits(self, tmp_path):
        whole = _model()
        fit(LOSS, _data(), whole, steps=20, batch_size=8, **QUIET)

        def asking(model, batch):
            if len(calls) == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            calls.append(1)
            return LOSS(model, batch)

        calls, before = [], signal.getsignal(signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            fit(asking, _data(), _model(), steps=20, batch_size=8, out=tmp_path, **QUIET)
        assert (stopped.value.code, stopped.value.step, stopped.value.by) == (0, 8, "SIGTERM")
        assert signal.getsignal(signal.SIGTERM) is before
        again = _model(seed=3)
        fit(LOSS, _data(), again, steps=20, batch_size=8, out=tmp_path, resume=True, **QUIET)
        assert torch.equal(_weights(again), _weights(whole))

    def test_signals_are_left_alone_where_nothing_is_kept_or_they_were_ignored_or_elsewhere(self, tmp_path):
        handlers = []

        def looking(model, batch):
            handlers.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
            return LOSS(model, batch)

        before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
        fit(looking, _data(), _model(), steps=1, batch_size=8, **QUIET)
        assert handlers.pop() == before
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            fit(looking, _data(), _model(), steps=1, batch_size=8, out=tmp_path / "a", **QUIET)
            assert handlers[-1][0] is not before[0] and handlers.pop()[1] is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before[1])
        thread = threading.Thread(
            target=fit,
            args=(looking, _data(), _model()),
            kwargs={"steps": 1, "batch_size": 8, "out": tmp_path / "b", **QUIET},
        )
        thread.start()
        thread.join()
        assert handlers == [before]


class TestDiskFull:
    @pytest.mark.parametrize("kind", ["python", "safetensors"])
    def test_the_checkpoint_before_stays_whole_and_the_error_says_so(self, kind, tmp_path, monkeypatch):
        whole = _model()
        fit(LOSS, _data(), whole, steps=9, batch_size=8, **QUIET)
        write, calls = files.write_tensors, []

        def full(path, tensors, metadata=None):
            calls.append(path)
            if len(calls) == 11:  # model, ema, optimizer of three checkpoints, and one of the fourth
                path.write_bytes(b"half of it")
                if kind == "python":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                from safetensors import SafetensorError

                raise SafetensorError("Error: I/O error: No space left on device (os error 28)")
            return write(path, tensors, metadata)

        monkeypatch.setattr(state, "write_tensors", full)
        options = {"steps": 9, "batch_size": 8, "out": tmp_path, "checkpoint_every": 0.0, **QUIET}
        with pytest.raises(
            DiskFullError, match=r"no room for checkpoint step-00000004 in .*step-00000003 is whole"
        ) as e:
            fit(LOSS, _data(), _model(), **options)
        assert e.value.errno == errno.ENOSPC
        assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
        again = _model(seed=4)
        fit(LOSS, _data(), again, resume=True, **options)
        assert torch.equal(_weights(again), _weights(whole))

    def test_a_log_that_has_no_room_says_so_too(self, tmp_path):
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        keeper = state.Keeper(tmp_path, {})
        with pytest.raises(DiskFullError, match=r"no room for metrics.jsonl in .*there is no earlier one"):
            keeper.log({"step": 1})

    def test_other_errors_are_not_taken_for_it(self, tmp_path):
        with pytest.raises(PermissionError), state.Keeper(tmp_path, {}).room("a checkpoint"):
            raise PermissionError(errno.EACCES, "no")


class TestTrace:
    def _poison(self, at, how):
        calls, model = [], _model()

        def loss(model, batch):
            calls.append(1)
            if len(calls) == 4:
                how(model.net)
            return LOSS(model, batch)

        with pytest.raises(NotFiniteError) as error:
            fit(loss, _data(), model, steps=9, batch_size=8, **QUIET)
        assert "at step 3" in str(error.value) and at in str(error.value), str(error.value)
        assert not any(m._forward_hooks for m in model.net.modules() if m is not model.net.blocks[1].second)

    def test_the_layer_whose_answer_overflows_is_named(self):
        self._poison(
            "first in what the layer 'blocks.1.second' (Linear) answered",
            lambda net: net.blocks[1].second.register_forward_hook(lambda m, args, out: out * math.inf),
        )

    def test_weights_that_are_not_finite_are_named(self):
        def spoil(net):
            with torch.no_grad():
                net.blocks[0].first.weight[0, 0] = math.nan

        self._poison("the layer 'blocks.0.first' (Linear) (its weight is not finite) answered", spoil)

    def test_the_layer_where_a_gradient_overflows_is_named(self):
        class Steep(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                return grad * math.inf

        self._poison(
            "though the loss is, first in the gradient that left the layer 'blocks.1.second' (Linear)",
            lambda net: net.blocks[1].second.register_forward_hook(lambda m, args, out: Steep.apply(out)),
        )

    def test_a_loss_that_spoils_a_finite_answer_is_named(self):
        with pytest.raises(NotFiniteError, match="in the loss: the network's answer is finite"):
            fit(lambda m, b: LOSS(m, b) / 0, _data(), _model(), steps=2, batch_size=8, **QUIET)
