"""Learned variance: with the exact variance of every step, a few steps have the exact mean and covariance."""

import math

import pytest
import torch
from torch import nn

from suffuse import Denoiser, denoiser, guide, noise, oracle, run, sample, samplers, schedules
from suffuse.parameterize import Prediction
from suffuse.samplers import ddpm_learned

from ..laws.worlds import SCHEDULES

MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)
VAR = torch.tensor([0.04, 0.3, 0.9], dtype=torch.float64)


def exact(schedule):
    """N(MEAN, VAR) with the fraction that makes p(x_b | x_a) exact: Bayes' rule for two jointly normal states."""
    world = oracle.Gaussian(MEAN, VAR, schedule=schedule)

    def tell(x, t, to, base):
        (aa, sa), (ab, sb) = schedule(t), schedule(to)
        var_a, var_b = aa**2 * VAR + sa**2, ab**2 * VAR + sb**2
        covariance = aa / ab * var_b  # x_a = (aa/ab) x_b + noise
        wanted = var_b - covariance**2 / var_a
        large = sa**2 - (aa / ab * sb) ** 2
        small = large * sb**2 / sa**2
        p = base(x, t)
        fraction = (wanted / small).log() / math.log(large / small) if sb > 0 else torch.zeros(3).double()
        return Prediction(p.x, p.alpha, p.sigma, x0=p.x0, eps=p.eps, fraction=fraction.expand_as(x))

    return denoiser(tell, parts=[world])


class Told:
    """Noise that is handed in: one tensor a step, in order."""

    def __init__(self, values):
        self.values = list(values)

    def increment(self, a, b):
        return self.values.pop(0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("n", [1, 3])
def test_a_chain_of_exact_steps_has_the_exact_mean_and_variance(schedule, n):
    grid = [schedule.time(v) for v in torch.linspace(-3.0, 4.0, n + 1).tolist()]
    plan, model = ddpm_learned.plan(schedule, grid), exact(schedule)

    def end(x, noises):
        for step in plan.run(model, x, Told(noises)):
            x = step.x
        return x

    zero, one = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    shift = end(zero, [zero] * n)
    slope = end(one, [zero] * n) - shift
    gains = [end(zero, [one if i == k else zero for i in range(n)]) - shift for k in range(n)]
    (aa, sa), (ab, sb) = schedule(grid[0]), schedule(grid[-1])
    mean = slope * (aa * MEAN) + shift
    var = slope**2 * (aa**2 * VAR + sa**2) + sum(g**2 for g in gains)
    torch.testing.assert_close(mean[0], ab * MEAN, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(var[0], ab**2 * VAR + sb**2, rtol=1e-9, atol=1e-9)


def Constant(fraction, world):
    def tell(x, t, to, base):
        p = base(x, t)
        return Prediction(p.x, p.alpha, p.sigma, x0=p.x0, eps=p.eps, fraction=torch.full_like(x, fraction))

    return denoiser(tell, parts=[world])


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_the_two_ends_of_the_range_are_the_two_fixed_variances(schedule, fraction, variance):
    world = oracle.Mixture([0.4, 0.6], [[-1.0, 0.3], [1.0, 0.5]], 0.1, schedule=schedule)
    z = noise((5, 2), seed=0)
    fixed = sample(world, z, sampler=samplers.ddpm(variance=variance), steps=7, seed=3)
    learned = sample(Constant(fraction, world), z, sampler=ddpm_learned, steps=7, seed=3)
    torch.testing.assert_close(learned, fixed, rtol=0, atol=3e-6)


class Net(nn.Module):
    """Answers twice the channels; the second half is v = tanh of a scale, so that it differs by row and label."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(2, 4, 1)

    conditions = {}

    def forward(self, x, t, label=None):
        out = self.mix(x) * (1 + (0 if label is None else label.reshape(-1, 1, 1, 1)))
        return torch.cat([out[:, :2], out[:, 2:].tanh()], 1)


LINEAR = schedules.Linear()
X = noise((4, 2, 3, 3), seed=0)


def test_a_network_with_twice_the_channels_is_split():
    net = Net()
    model, t = Denoiser(net, LINEAR, "eps", variance="range"), torch.full((4,), 0.4)
    out = net(X, t)
    for p in (model(X, 0.4), model(X, t)):
        torch.testing.assert_close(p.eps, out[:, :2])
        torch.testing.assert_close(p.fraction, (out[:, 2:] + 1) / 2)
    assert torch.equal(model.output(X, 0.4)[0], out[:, :2]), "what a loss compares"
    plain = Denoiser(lambda x, t: net(x, t)[:, :2], LINEAR, "eps")
    for rule in (samplers.ddim, samplers.dpmpp):
        torch.testing.assert_close(
            sample(model, X, sampler=rule, steps=4, grid=_grid), sample(plain, X, sampler=rule, steps=4, grid=_grid)
        )


def _grid(schedule, steps):
    return [0.9 - 0.2 * k for k in range(steps + 1)]


def test_guidance_batches_and_rows_carry_the_variance():
    net = Net()
    told = Denoiser(net, LINEAR, "eps", condition=["label"], variance="range")
    labels = torch.tensor([0.1, 0.7, -0.4, 0.9])
    pos, neg = told.given(label=labels), told.given(label=0.0)
    guided = guide(pos, neg, 3.0)
    p, yes, no = guided(X, 0.4), pos(X, 0.4), neg(X, 0.4)
    assert torch.equal(p.fraction, yes.fraction), "the mean is guided, the variance is the positive's own"
    assert not torch.equal(yes.fraction, no.fraction)
    torch.testing.assert_close(guide(pos, told, 1.0)(X, 0.4).fraction, yes.fraction)
    whole = sample(guided, X, sampler=ddpm_learned, steps=4, grid=_grid, seed=1)
    alone = sample(guided.rows(slice(2, 3)), X[2:3], sampler=ddpm_learned, steps=4, grid=_grid, seed=1, first=2)
    torch.testing.assert_close(alone[0], whole[2], rtol=0, atol=1e-5)


def test_a_run_can_be_steered():
    model, start = exact(LINEAR), noise((4, 3), seed=0, dtype=torch.float64)
    visited, other = [], noise((2, 3), seed=5, dtype=torch.float64)
    for step in run(model, start, sampler=ddpm_learned, steps=5, seed=0):
        visited.append(step.k)
        if visited == [0, 1]:
            step.take(torch.tensor([2, 0]))
        if visited == [0, 1, 2]:
            step.x = other
            step.goto(1)
        if visited == [0, 1, 2, 1]:
            p = model(other, step.t, to=step.s)
            torch.testing.assert_close(step.prediction.x0, p.x0)
    assert visited == [0, 1, 2, 1, 2, 3, 4] and step.x.shape == (2, 3)
    assert step.nfe == 7


MISUSE = {
    "twice the channels": (
        lambda: sample(Denoiser(Net(), LINEAR, "eps"), X, steps=4, grid=_grid),
        ValueError,
        r"answered shape \(4, 4, 3, 3\) to x of shape \(4, 2, 3, 3\).*variance='range'",
    ),
    "not twice": (
        lambda: Denoiser(lambda x, t: x, LINEAR, variance="range")(X, 0.5),
        ValueError,
        "twice the channels",
    ),
    "kind": (lambda: Denoiser(Net(), LINEAR, variance="learned"), ValueError, "None or 'range', got 'learned'"),
    "no variance": (
        lambda: sample(oracle.Gaussian(MEAN, VAR), X[:, 0, 0], sampler=ddpm_learned, steps=3, seed=0),
        ValueError,
        "no learned variance",
    ),
    "no seed": (lambda: sample(exact(LINEAR), X[:, 0], sampler=ddpm_learned, steps=3), ValueError, "give it a seed"),
    "grid rises": (lambda: ddpm_learned.plan(LINEAR, [0.5, 0.7]), ValueError, "must fall"),
    "another schedule": (
        lambda: sample(exact(LINEAR), X[:, 0], sampler=ddpm_learned.plan(schedules.Cosine(), [1.0, 0.0]), seed=0),
        ValueError,
        r"use denoiser.on\(schedule\)",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, kind, message = MISUSE[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
