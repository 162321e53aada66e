"""Muon beside AdamW, the plateau of the learning rate, and a look at the model on the way."""

import json

import pytest
import torch
from torch import nn

from suffuse.nets import DiT, Words
from suffuse.training import fit
from suffuse.training.fit import _rate
from suffuse.training.optimizer import Optimizer

WORDS = tuple("abcdefgh")


def net():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return DiT(1, 2, 16, 2, 2, conditions={"text": Words(WORDS, 8, layers=1)})


def test_muon_steps_are_orthogonal_and_for_the_matrices_of_blocks_only():
    model = net()
    muon = Optimizer("muon", model, 1e-2, 0.0, lr_matrices=3e-2)
    stepped = {id(p) for group in muon.parts[1].param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in stepped}
    assert "blocks.0.mlp.0.weight" in names and "told.embedders.0.layers.0.mlp.0.weight" in names
    assert all(p.ndim == 2 for n, p in model.named_parameters() if n in names)
    assert not names & {"stem.weight", "out.weight", "told.embedders.0.lookup.weight", "blocks.0.mlp.0.bias"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    muon.step(0.5)
    for name, p in model.named_parameters():
        step = before[name] - p.detach()
        if name in names:
            s = torch.linalg.svdvals(step) / (0.5 * 3e-2 * 0.2 * max(p.shape) ** 0.5)
            assert s.min() > 0.6 and s.max() < 1.3, name
        else:
            torch.testing.assert_close(step.abs(), torch.full_like(step, 0.5 * 1e-2), rtol=1e-3, atol=0)
        assert p.grad is None


def test_muon_is_torchs():
    """Three steps of matrices and kernels of several sizes, those of one size stepped together and in turns."""
    torch.manual_seed(2)
    model = nn.ModuleList(nn.Linear(a, b) for a, b in [(24, 8), (8, 24), (24, 8), (16, 16), (24, 8)])
    model.extend([nn.Conv2d(4, 12, 3), nn.Conv1d(6, 5, 2)])
    ours, own = Optimizer("muon", model, 1e-2, 0.1), [layer.weight for layer in model]
    theirs = [nn.Parameter(p.detach().flatten(1).clone()) for p in own]
    peer = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours.parts[1].together = 2 * 24 * 8
    for _ in range(3):
        before = [p.detach().clone() for p in theirs]
        for p, q in zip(own, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.flatten(1).clone()
        ours.step(1.0)
        peer.step()
        for p, q, old in zip(own, theirs, before, strict=True):
            assert (p.flatten(1) - q).norm() < 0.02 * (q - old).norm()


def test_muon_leaves_what_is_computed_or_grouped_and_refuses_the_memory_of_others():
    parts = nn.ModuleList([nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 6, 3), nn.Linear(4, 4)])
    nn.utils.parametrizations.spectral_norm(parts[2])
    muon = Optimizer("muon", parts, 1e-2, 0.0)
    assert [p.shape for group in muon.parts[1].param_groups for p in group["params"]] == [(6, 4, 3, 3)]
    for p in parts.parameters():
        p.grad = torch.ones_like(p)
    muon.step(1.0)
    with pytest.raises(ValueError, match=r"remembers '0\..*' of shape \(4, 2, 3, 3\), which no parameter"):
        Optimizer("muon", nn.ModuleList([nn.Linear(4, 4)]), 1e-2, 0.0).fill(muon.tensors())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path):
    data = {"x": torch.rand(32, 1, 4, 4) * 2 - 1, "text": torch.randint(8, (32, 3))}

    def loss(model, batch, stop=None):
        if stop and batch["x"].flatten()[0] == stop:
            raise KeyboardInterrupt
        t = torch.rand(len(batch["x"]))
        return (model(batch["x"], t, text=batch["text"]) - batch["x"]).square().flatten(1).mean(1)

    how = {"steps": 8, "batch_size": 4, "seed": 3, "optimizer": name, "progress": False, "precision": "float32"}
    whole, seen = net(), []
    fit(lambda m, b: seen.append(b["x"].flatten()[0].item()) or loss(m, b), data, whole, **how)
    parted = net()
    with pytest.raises(KeyboardInterrupt):
        fit(lambda m, b: loss(m, b, stop=seen[5]), data, parted, out=tmp_path, checkpoint_every=0, **how)
    again = net()
    fit(loss, data, again, out=tmp_path, resume=True, **how)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="optimizer must be 'adamw' or 'muon', got 'adam'"):
        Optimizer("adam", net(), 1e-3, 0.0)
    with pytest.raises(ValueError, match=r"lr_matrices is Muon's rate, got 0\.1 with optimizer='adamw'"):
        Optimizer("adamw", net(), 1e-3, 0.0, lr_matrices=0.1)


def test_the_rate_keeps_to_a_plateau_and_falls_over_the_last_share():
    assert [_rate(n, 1100, 100, 0.25) for n in (100, 500, 700, 850)] == [1, 1, 1, 1]
    assert _rate(975, 1100, 100, 0.25) == pytest.approx(0.5)
    assert _rate(1100, 1100, 100, 0.25) == pytest.approx(0)
    with pytest.raises(ValueError, match=r"decay must be a share in \[0, 1\], got 2"):
        fit(lambda m, b: b["x"].sum(), {"x": torch.zeros(4, 1)}, nn.Linear(1, 1), steps=1, decay=2)


def test_a_look_sees_the_averaged_model_and_changes_nothing(tmp_path):
    data = {"x": torch.rand(16, 3)}

    def loss(model, batch):
        assert model.training
        return (model(batch["x"]) - torch.randn(len(batch["x"]), 1)).square().mean(1)

    seen = []

    def watch(model):
        seen.append((model.weight.clone(), torch.rand(()).item()))
        assert not model.training and not torch.is_grad_enabled()
        return {"weight": model.weight.sum().item()}

    made = []
    looks = {"watch": watch, "watch_every": 2}
    for how in ({"ema": 0.9}, {"ema": 0.9} | looks, {"ema": None} | looks):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        out = tmp_path / str(len(made))
        torch.manual_seed(len(made))
        before = torch.get_rng_state()
        made.append(fit(loss, data, model, steps=5, batch_size=8, out=out, progress=False, **how))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made[0].model.weight, made[1].model.weight)
    assert torch.equal(made[0].model.weight, made[2].model.weight)
    assert len(seen) == 6 and len({value for _, value in seen}) == 1, (
        "after 2, 4 and all 5, with the same numbers drawn"
    )
    assert torch.equal(seen[2][0], made[1].ema.weight) and not torch.equal(seen[2][0], made[1].model.weight)
    lines = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "weight" in line] == [2, 4, 5]


@pytest.mark.slow
def test_a_compiled_run_is_the_same_up_to_rounding():
    data = {"x": torch.rand(32, 1, 4, 4) * 2 - 1, "text": torch.randint(8, (32, 3))}

    def loss(model, batch):
        t = torch.rand(len(batch["x"]))
        return (model(batch["x"], t, text=batch["text"]) - batch["x"]).square().flatten(1).mean(1)

    models = [net(), net()]
    for model, compiled in zip(models, (False, True), strict=True):
        fit(loss, data, model, steps=4, batch_size=8, compile=compiled, precision="float32", progress=False)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
