"""Several processes take the step of one: 2 over gloo, in float64, for seconds."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from suffuse import Denoiser, fit, losses, noise, oracle, sample, schedules
from suffuse.data import draws
from suffuse.nets import DiT, Label, UNet
from suffuse.training import NotFiniteError, PeerLostError, PowerEMA, gathered, peers, post_hoc_ema, validation
from tests.training.processes import together

pytestmark = pytest.mark.processes

LOSS = functools.partial(losses.denoising, dropout=0.3, times=losses.logit_normal)


def _data(n=48):
    return {"x": noise((n, 1, 4, 4), seed=0, dtype=torch.float64), "label": torch.arange(n) % 3}


def _model(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    net = DiT(1, width=8, depth=1, heads=2, dropout=dropout, conditions={"label": Label(3)}).double()
    return Denoiser(net, schedules.Linear(), "velocity")


def _weights(model):
    return torch.cat([p.detach().flatten() for p in model.net.parameters()]).numpy()


def _train(model=None, data=None, loss=LOSS, **options):
    """Weights and averages after 20 steps of 8."""
    model = _model(seed=peers().index) if model is None else model  # unequal at first: the first one's count
    given = {"steps": 20, "batch_size": 8, "lr": 3e-3, "ema": 0.9, "precision": "float32", "progress": False} | options
    done = fit(loss, _data() if data is None else data, model, **given)
    return _weights(model), _weights(done.ema)


HOW = pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])


@HOW
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 6, "accumulate": 2, "gradient_checkpointing": True},
        {"steps": 6, "optimizer": "muon", "lr_matrices": 1e-2, "weight_decay": 0.1},
    ],
    ids=["plain", "accumulated and recomputed", "Muon"],
)
def test_steps_of_two_processes_are_those_of_one(shard, options):
    alone = _train(**options)
    for said in together(lambda: _train(shard=shard, **options)):
        for a, b in zip(alone, said, strict=True):
            assert np.abs(a - b).max() < 1e-9
    assert np.abs(alone[0] - _weights(_model())).max() > 3e-3


@HOW
def test_so_with_kernels_by_muon(shard):
    def model():
        torch.manual_seed(0)
        net = UNet(1, 8, (1, 2), 1, (), heads=1, conditions={"label": Label(3)}).double()
        return Denoiser(net, schedules.Linear(), "velocity")

    how = {"steps": 6, "optimizer": "muon"}
    alone = _train(model(), **how)
    for said in together(lambda: _train(model(), shard=shard, **how)):
        for a, b in zip(alone, said, strict=True):
            assert np.abs(a - b).max() < 1e-9


@HOW
def test_a_loss_with_weights_of_its_own_is_trained_alike(shard):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.u = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, model, batch):
            u = self.u[batch["label"]]
            return LOSS(model, batch) * (-u).exp() + u

    def work(**options):
        own = Scaled()
        return *_train(loss=own, steps=6, lr=1e-2, **options), own.u.detach().numpy()

    alone = work()
    assert np.abs(alone[2]).max() > 1e-2
    for said in together(lambda: work(shard=shard)):
        for a, b in zip(alone, said, strict=True):
            assert np.abs(a - b).max() < 1e-9


class Cut(Exception):
    pass


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, False), (1, False)), ((1, False), (2, True)), ((2, True), (1, False)), ((2, True), (2, False))],
    ids=["DDP 2 to 1", "1 to FSDP2 2", "FSDP2 2 to 1", "FSDP2 to DDP"],
)
def test_another_number_of_processes_goes_on_exactly(before, after, tmp_path):
    how = {"steps": 10, "optimizer": "muon", "out": tmp_path}

    def stopping(model, batch):
        stopping.calls += 1
        if stopping.calls > 5:
            raise Cut
        return LOSS(model, batch)

    def first():
        stopping.calls = 0
        try:
            _train(loss=stopping, checkpoint_every=0.0, shard=before[1], **how)
        except Cut:
            return "cut"

    def second():
        return _train(model=_model(seed=7), resume=True, shard=after[1], **how)

    assert set([first()] if before[0] == 1 else together(first)) == {"cut"}
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert newest.name == "step-00000005"
    whole = _train(steps=10, optimizer="muon")
    for said in [second()] if after[0] == 1 else together(second):
        for a, b in zip(whole, said, strict=True):
            assert np.abs(a - b).max() < 1e-9
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [10]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_look_at_sharded_weights_sees_what_one_process_sees(ema, tmp_path):
    held_out = {name: value[:8] for name, value in _data().items()}

    def work(name, **options):
        _train(steps=4, ema=ema, out=tmp_path / name, watch=validation(held_out, bins=2), watch_every=2, **options)
        return [json.loads(line)["val_loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    one, two = work("one"), together(lambda: work("two", shard=True))[0]
    assert len(two) == 2 and two == pytest.approx(one, abs=1e-9)


def test_post_hoc_averages_of_sharded_weights_are_those_of_one(tmp_path):
    spec = PowerEMA(lengths=(0.05, 0.1), every=2)
    _train(steps=8, ema=spec, out=tmp_path / "one")
    together(lambda: _train(steps=8, ema=spec, out=tmp_path / "two", shard=True))
    a, b = (_weights(post_hoc_ema(tmp_path / name, _model(), 0.12)) for name in ("one", "two"))
    assert np.abs(a - b).max() < 1e-9


def test_each_item_is_seen_by_one_process_and_all_are_seen():
    class Seen:
        def __len__(self):
            return 24

        def __getitem__(self, rows):
            seen.extend(rows.tolist())
            return {"x": torch.zeros(len(rows), 1, 4, 4, dtype=torch.float64), "label": rows % 3}

    seen: list[int] = []

    def work():
        _train(data=draws(Seen(), seed=0), steps=3)
        return seen

    one, two = together(work)
    assert sorted(one + two) == list(range(24))
    seen.clear()
    assert [row for pair in zip(one, two, strict=True) for row in pair] == work()


@pytest.mark.parametrize("times", [losses.stratified, losses.logit_normal, losses.uniform])
def test_times_and_noise_are_one_batch_over_all_processes(times):
    heard = []

    def listening(model, batch):
        n = len(batch["x"])
        drawn = [times(n, torch.device("cpu")), torch.rand(()), torch.randn(2, n, 3).transpose(0, 1)]
        drawn += [torch.randn_like(batch["x"]), torch.randint(0, 99, (n,)), torch.empty(n, 2).exponential_()]
        drawn += [torch.nn.functional.dropout(batch["x"], 0.5), torch.bernoulli(torch.full((n, 3), 0.5))]
        heard.append([value.numpy() for value in drawn])
        return LOSS(model, batch)

    def work():
        _train(steps=2, loss=listening)
        return heard

    both = together(work)
    alone = work()
    for step, whole in enumerate(alone):
        for k, value in enumerate(whole):
            parts = [said[step][k] for said in both]
            joined = parts[0] if value.ndim == 0 else np.stack(parts, 1).reshape(value.shape)
            assert np.array_equal(joined, value), k
    if times is losses.stratified:
        strata = np.sort(np.floor(8 * np.concatenate([said[0][0] for said in both])))
        assert np.array_equal(strata, np.arange(8))


@pytest.mark.parametrize("rows", [7, 1])
def test_samples_made_by_two_processes_are_those_of_one(rows):
    model = oracle.Mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], 0.04, schedule=schedules.Linear())

    def work():
        return gathered(
            rows, lambda first, n: sample(model, noise((n, 2), seed=3, first=first), steps=6, seed=3, first=first)
        ).numpy()

    for said in together(work):
        assert said.shape == (rows, 2) and np.abs(said - work()).max() < 1e-6


@pytest.mark.parametrize("work", [lambda: gathered(4, lambda first, n: torch.zeros(n)), _train], ids=["rows", "fit"])
def test_a_process_that_is_lost_outside_of_a_step_is_named(work):
    def losing():
        if peers().index == 1:
            os._exit(1)
        return work()

    lost = together(losing)[0]
    assert isinstance(lost, PeerLostError) and "the other process is gone while they shared work" in str(lost)


def test_every_process_says_that_a_row_is_not_finite():
    def broken(model, batch):
        return LOSS(model, batch) * torch.where(batch["label"] == 2, torch.inf, 1.0)

    data = {"x": torch.zeros(8, 1, 4, 4, dtype=torch.float64), "label": torch.tensor([0, 2, 0, 0, 0, 0, 0, 0])}
    said = together(lambda: _train(data=data, loss=broken))
    assert all(isinstance(one, NotFiniteError) for one in said)
    whose, other = sorted(map(str, said), key=lambda text: "of each process" in text)
    assert "in 1 of 4 rows" in whose and "step 0: 1 rows; rows of each process" in other


def test_weights_that_a_loss_leaves_out_are_named():
    def work():
        model = _model()
        model.net.extra = nn.Linear(2, 2).double()
        return _train(model=model)

    for said in together(work):
        assert isinstance(said, ValueError) and "extra.weight" in str(said)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    for said in together(lambda: _train(batch_size=9)):
        assert isinstance(said, ValueError) and "2 processes" in str(said) and "got 9" in str(said)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_a_lost_process_ends_the_other_with_one_sentence(how, tmp_path):
    number = tmp_path / "number"

    def losing(model, batch):
        losing.calls += 1
        if peers().index == 1 and losing.calls == 4:
            number.write_text(str(os.getpid()))
            os.kill(os.getpid(), how)
        return LOSS(model, batch)

    def work():
        losing.calls = 0
        try:
            return _train(loss=losing, out=tmp_path / "run", checkpoint_every=0.0)
        except PeerLostError as lost:
            return str(lost), time.time()

    text, at = _first(work, number)
    assert "the other process" in text and "step-00000003" in text and "--resume" in text and "\n" not in text
    assert at - number.stat().st_mtime < 12, "it does not wait for the hung one to be killed, after 15 s"


def _first(work, number: Path):
    """What the first process says, while the second may never say anything."""

    def wake():
        while not number.exists():
            time.sleep(0.1)
        time.sleep(15)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number.read_text()), signal.SIGKILL)

    threading.Thread(target=wake, daemon=True).start()
    return together(work, patience=3)[0]


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    def signalled(model, batch):
        signalled.calls += 1
        if peers().index == 1 and signalled.calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return LOSS(model, batch)

    def work():
        signalled.calls = 0
        try:
            _train(loss=signalled, out=tmp_path)
        except SystemExit as stopped:
            return stopped.step

    assert together(work) == [5, 5]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
