"""From data to noise and back: nearly, with any deterministic sampler; to rounding, with two that carry two states."""

import math

import pytest
import torch
from torch import nn

from suffuse import Denoiser, denoiser, grids, noise, oracle, sample, samplers, schedules
from suffuse.samplers import adaptive, bdia, decode_pair, edict, encode, encode_pair, heun

from ..laws.worlds import SCHEDULES, mixture_1d, transported

LINEAR = schedules.Linear()


def relative(x, y):
    return ((x - y).square().mean() / y.square().mean()).sqrt().item()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
class TestEverySchedule:
    def test_data_comes_back_in_200_steps(self, schedule):
        world = mixture_1d(schedule)
        x = world.sample(100, seed=1).double()
        z = encode(world, x, steps=200)
        assert relative(sample(world, z, sampler=heun, steps=200), x) < 2e-5
        z = encode(world, x, nfe=200)
        assert relative(sample(world, z, sampler=heun, nfe=200), x) < 1e-4

    def test_adaptive_steps_come_back_too(self, schedule):
        world = mixture_1d(schedule)
        x = world.sample(100, seed=1).double()
        z = encode(world, x, sampler=adaptive(1e-6, 1e-6))
        assert relative(sample(world, z, sampler=adaptive(1e-6, 1e-6)), x) < 1e-4

    @pytest.mark.parametrize("rule", [bdia, bdia(gamma=0.9), edict], ids=repr)
    def test_a_pair_comes_back_exactly_in_20_steps(self, schedule, rule):
        world = mixture_1d(schedule)
        x = world.sample(100, seed=1).double()
        pair = encode_pair(world, x, sampler=rule, steps=20)
        assert relative(decode_pair(world, pair, sampler=rule, steps=20), x) < 1e-9
        z = pair[0] / math.hypot(*schedule(1.0))
        assert 0.8 < z.std() < 1.25 and z.mean().abs() < 0.25, "and what it was is noise"


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "linear-shift-3"])
def test_the_code_is_where_the_exact_flow_takes_the_data(name):
    schedule = SCHEDULES[name]
    world = mixture_1d(schedule)
    x = world.sample(50, seed=1).double()
    exact = transported(world, x, 0.0, 1.0) / math.hypot(*schedule(1.0))
    errors = [relative(encode(world, x, steps=n), exact) for n in (50, 100)]
    assert errors[1] < 2e-3 and errors[1] < 0.6 * errors[0]
    tight = adaptive(1e-8, 1e-8, end=schedule.time(22.0))
    torch.testing.assert_close(encode(world, x, sampler=tight), exact, rtol=0, atol=1e-6)


def test_float32_is_enough():
    world = mixture_1d(LINEAR)
    x = world.sample(100, seed=1).float()
    assert relative(sample(world, encode(world, x, steps=100), sampler=heun, steps=100), x) < 1e-4
    pair = encode_pair(world, x, steps=20)
    assert relative(decode_pair(world, pair, steps=20), x) < 1e-5


def test_conditions_go_along_row_by_row():
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0]], dtype=torch.float64)
    world = oracle.Mixture([0.5, 0.5], means, [0.3, 0.2], schedule=LINEAR)
    labels = torch.tensor([0, 1, 1, 0])
    told, swapped = world.given(label=labels), world.given(label=1 - labels)
    x = told.sample(4, seed=0)
    z = encode(told, x, steps=60)
    torch.testing.assert_close(sample(told, z, sampler=heun, steps=60), x, rtol=0, atol=1e-4)
    moved = sample(swapped, z, sampler=heun, steps=60)
    assert (moved - means[1 - labels]).norm(dim=1).max() < (moved - means[labels]).norm(dim=1).min()
    for kept in (slice(1, 2), slice(3, 4)):
        torch.testing.assert_close(encode(told.rows(kept), x[kept], steps=60), z[kept], rtol=0, atol=1e-12)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_no_network_is_asked_where_its_output_says_nothing(predicts):
    world = mixture_1d(LINEAR)
    x, seen = world.sample(20, seed=1).double(), []

    def net(x, t):
        seen.append(t.min().item())
        p, (alpha, sigma) = world(x, t), LINEAR(t, like=x)
        return {"eps": p.eps, "x0": p.x0, "v": alpha * p.eps - sigma * p.x0}[predicts]

    def grid(schedule, n):
        return grids.logsnr(schedule, n, start=0.98)

    model = Denoiser(net, LINEAR, predicts)
    z = encode(model, x, steps=100, grid=grid)
    torch.testing.assert_close(sample(model, z, sampler=heun, steps=100, grid=grid), x, rtol=0, atol=1e-4)
    assert min(seen) > 0
    up = transported(world, x, 0.0, 0.98) / math.hypot(0.02, 0.98)
    torch.testing.assert_close(z, up, rtol=0, atol=2e-3)
    if predicts == "eps":
        with pytest.raises(ValueError, match="predicts eps says nothing at alpha=0"):
            encode(model, x, steps=10)


def test_a_grid_that_ends_above_zero_takes_the_state_there():
    world = mixture_1d(LINEAR)
    x, times = world.sample(20, seed=1).double(), torch.linspace(0.8, 0.3, 101, dtype=torch.float64)
    z = encode(world, x, grid=times)
    torch.testing.assert_close(z * math.hypot(0.2, 0.8), transported(world, x, 0.3, 0.8), rtol=0, atol=1e-4)
    torch.testing.assert_close(sample(world, z, sampler=heun, grid=times), x, rtol=0, atol=1e-4)
    pair = encode_pair(world, x, grid=times)
    torch.testing.assert_close(decode_pair(world, pair, grid=times), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(pair[0], transported(world, x, 0.3, 0.8), rtol=0, atol=2e-3)
    point = oracle.Gaussian(torch.tensor([0.7], dtype=torch.float64), 1e-12, schedule=LINEAR)
    z = encode(point, torch.tensor([[0.7]], dtype=torch.float64), grid=[0.9, 0.0])
    assert z.item() * math.hypot(0.1, 0.9) == pytest.approx(0.1 * 0.7), "one step, of data that is one point, is exact"


class Dropped(nn.Module):
    conditions = {}

    def __init__(self):
        super().__init__()
        self.line, self.drop = nn.Linear(2, 2).double(), nn.Dropout(0.5)

    def forward(self, x, t):
        return self.drop(self.line(x))


@pytest.mark.parametrize("how", [encode, encode_pair])
def test_networks_are_in_eval_mode_and_gradients_flow_only_when_asked(how):
    net = Dropped().train()
    model, x = Denoiser(net, LINEAR, "v"), noise((3, 2), seed=0, dtype=torch.float64)
    first, again = how(model, x, steps=6), how(model, x, steps=6)
    assert torch.equal(torch.stack(list(first)), torch.stack(list(again))), "no dropout"
    assert net.training and net.drop.training
    assert not first[0].requires_grad
    assert how(model, x, steps=6, grad=True)[0].requires_grad


def test_every_call_begins_with_fresh_state():
    def counting(x, t, to, base, *, state):
        state.append(t)
        return base(x, t)

    counted = denoiser(counting, parts=[mixture_1d(LINEAR)], state=list)
    encode(counted, noise((2, 1), seed=0, dtype=torch.float64), steps=3)
    assert counted.state == []


def test_gradients_are_those_of_the_flow():
    world, x = mixture_1d(LINEAR), torch.tensor([[0.3], [-0.9]], dtype=torch.float64, requires_grad=True)
    tight = adaptive(1e-9, 1e-9, end=1e-6)
    (gradient,) = torch.autograd.grad(encode(world, x, sampler=tight, grad=True).sum(), x)
    h = 1e-5
    with torch.no_grad():
        truth = (transported(world, x + h, 0.0, 1.0) - transported(world, x - h, 0.0, 1.0)) / (2 * h)
    torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-6)


WORLD, X = mixture_1d(LINEAR), torch.zeros(2, 1, dtype=torch.float64)
MISUSE = {
    "noise": (lambda: encode(WORLD, X, sampler=samplers.ddpm, steps=4), ValueError, "draws noise and has no way back"),
    "a plan": (
        lambda: encode(WORLD, X, sampler=heun.plan(LINEAR, [1.0, 0.0])),
        TypeError,
        "takes a rule such as sf.samplers.heun, got",
    ),
    "no budget": (lambda: encode(WORLD, X), ValueError, "say how long"),
    "adaptive steps": (lambda: encode(WORLD, X, sampler=adaptive(), steps=3), ValueError, "has its own steps"),
    "pixels": (lambda: encode(WORLD, X + 255.0, steps=3), ValueError, "x0 runs from 255"),
    "pair of heun": (lambda: encode_pair(WORLD, X, sampler=heun, steps=3), TypeError, "only bdia and edict"),
    "gamma 0": (lambda: encode_pair(WORLD, X, sampler=bdia(gamma=0.0), steps=3), ValueError, "gamma > 0 .* got 0 and"),
    "one step": (lambda: encode_pair(WORLD, X, steps=1), ValueError, "at least two steps, got 1 and 1"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, kind, message = MISUSE[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
