"""Adaptive integration: the exact flow, to the tolerance asked for, one row at a time."""

import math

import pytest
import torch

from suffuse import denoiser, grids, guide, noise, oracle, run, sample, samplers, schedules
from suffuse.parameterize import Prediction
from suffuse.samplers import adaptive

from ..laws.worlds import SCHEDULES, mixture_1d, transported

LINEAR = schedules.Linear()
METHODS = ["bosh3", "dopri5"]


def at_noise(schedule, z):
    alpha, sigma = schedule(1.0)
    return z * math.hypot(alpha, sigma)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_rows_go_where_the_exact_flow_takes_them(schedule):
    world, z = mixture_1d(schedule), noise((20, 1), seed=0, dtype=torch.float64)
    truth = transported(world, at_noise(schedule, z), 1.0, 0.0)
    x = sample(world, z, sampler=adaptive(1e-8, 1e-8, end=schedule.time(22.0)))
    torch.testing.assert_close(x, truth, rtol=0, atol=1e-6)


def test_torchdiffeq_finds_the_same_solution():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.4]], dtype=torch.float64)
    world = oracle.Mixture([0.2, 0.5, 0.3], means, [0.2, 0.1, 0.3], schedule=LINEAR)
    z = noise((12, 2), seed=0, dtype=torch.float64)

    def velocity(t, x):
        p = world(x, t)
        return p.eps - p.x0

    x = torchdiffeq.odeint(velocity, z, torch.tensor([1.0, 0.04]).double(), rtol=1e-10, atol=1e-10)[-1]
    for method in METHODS:
        ours = sample(world, z, sampler=adaptive(1e-8, 1e-8, method).between(1.0, 0.04))
        torch.testing.assert_close(ours, x, rtol=0, atol=3e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_error_follows_the_tolerance(method):
    world, z = mixture_1d(LINEAR), noise((60, 1), seed=0, dtype=torch.float64)
    truth = transported(world, z, 1.0, 0.0)
    tolerances = [1e-5, 1e-6, 1e-7, 1e-8]
    errors, calls = [], []
    for tol in tolerances:
        for step in run(world, z, sampler=adaptive(tol, tol, method, end=1e-7)):
            last = step
        errors.append((last.x - truth).square().mean().sqrt().log10().item())
        calls.append(last.nfe)
    slope = (errors[-1] - errors[0]) / (math.log10(tolerances[-1]) - math.log10(tolerances[0]))
    assert 0.75 < slope < 1.4, errors
    assert all(e < math.log10(50 * tol) for e, tol in zip(errors, tolerances, strict=True)), errors
    growth = math.log10(calls[-1] / calls[0]) / 3  # a method of order p pays tol^(-1/p)
    assert growth == pytest.approx(1 / samplers.adaptive(method=method).pair.order, abs=0.07), calls


def test_a_row_does_not_depend_on_its_batch_mates():
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.4]], dtype=torch.float64)
    world = oracle.Mixture([0.2, 0.5, 0.3], means, [0.2, 1e-3, 1.0], schedule=LINEAR)
    z, labels = noise((6, 2), seed=0, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 2, 0])
    guided = guide(world.given(label=labels), world, torch.linspace(1.0, 2.5, 6, dtype=torch.float64))
    steps = list(run(guided, z, sampler=adaptive()))
    for i in range(6):
        alone = list(run(guided.rows(slice(i, i + 1)), z[i : i + 1], sampler=adaptive()))
        torch.testing.assert_close(alone[-1].x[0], steps[-1].x[i], rtol=0, atol=1e-12)
        assert alone[-1].evaluations.item() == steps[-1].evaluations[i].item()


def test_an_easy_row_costs_less_and_is_not_evaluated_once_it_arrived():
    means = torch.tensor([[0.0, 0.0], [1.0, -0.3], [-1.0, 0.6]], dtype=torch.float64)
    world = oracle.Mixture([0.4, 0.3, 0.3], means, [1.0, 1e-4, 1e-4], schedule=LINEAR, labels=[0, 1, 1])
    rows = []

    def counting(x, t, to, base):
        rows.append(len(x))
        return base(x, t)

    labels = torch.tensor([0, 0, 0, 1])
    counted = denoiser(counting, parts=[world.given(label=labels)])
    step = list(run(counted, noise((4, 2), seed=3, dtype=torch.float64), sampler=adaptive(1e-6, 1e-6)))[-1]
    assert step.evaluations[:3].max() * 2 < step.evaluations[3], step.evaluations
    assert sum(rows) == step.evaluations.sum() and len(rows) == step.nfe
    assert rows[-1] == 1


def test_a_start_from_noised_data_and_a_run_from_data_to_noise():
    world, x0 = mixture_1d(LINEAR), noise((9, 1), seed=1, dtype=torch.float64)
    z, tight = noise((9, 1), seed=2, dtype=torch.float64), adaptive(1e-9, 1e-9, end=1e-7)
    truth = transported(world, 0.4 * x0 + 0.6 * z, 0.6, 0.0)
    torch.testing.assert_close(sample(world, z, sampler=tight, start=(x0, 0.6)), truth, rtol=0, atol=1e-7)
    for step in tight.between(0.0, 1.0).run(world, x0):
        up = step.x
    torch.testing.assert_close(up, transported(world, x0, 0.0, 1.0), rtol=0, atol=1e-7)
    for step in tight.between(0.3, 0.8).run(world, x0):
        up = step.x
    assert step.s == 0.8
    torch.testing.assert_close(up, transported(world, x0, 0.3, 0.8), rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", [schedules.Discrete.ddpm(50), LINEAR])
def test_the_denoiser_is_not_asked_below_the_first_index_nor_at_clean_data(schedule):
    world, times = mixture_1d(schedule), []

    def watching(x, t, to, base):
        times.extend(t.tolist() if isinstance(t, torch.Tensor) else [t])
        return base(x, t)

    watched = denoiser(watching, parts=[world])
    x = sample(watched, noise((3, 1), seed=0, dtype=torch.float64), sampler=adaptive())
    for _ in adaptive().between(0.0, 1.0).run(watched, x):
        pass
    low = 1 / 50 if isinstance(schedule, schedules.Discrete) else 1e-3
    assert min(times) > low - 1e-12 and max(times) == pytest.approx(1.0)


def test_a_run_can_be_steered():
    schedule, tight = schedules.Cosine(), adaptive(1e-8, 1e-8, end=1e-6)
    world, z = mixture_1d(schedule), noise((4, 1), seed=1, dtype=torch.float64)
    told, index = world.given(label=torch.tensor([0, 1, 2, 1])), torch.tensor([3, 3, 0])
    whole = list(run(told, z, sampler=tight))[-1]
    times = []
    for step in run(told, z, sampler=tight):
        p = step.prediction
        times.append((step.t, step.s))
        torch.testing.assert_close(p.alpha * p.x0 + p.sigma * p.eps, p.x)
        torch.testing.assert_close(p.x0, told.rows(index if step.k > 3 else slice(None))(p.x, step.times).x0)
        if step.k == 3:
            step.take(index)
        last = step
    torch.testing.assert_close(last.x, whole.x[index], rtol=0, atol=1e-12)
    assert torch.equal(last.evaluations, whole.evaluations[index]), "taking rows costs nothing"
    assert times[0][0] == 1.0 and times[-1][1] == 0.0
    assert all(b == c and t > b for (t, b), (c, _) in zip(times, times[1:], strict=False))

    other = noise((3, 1), seed=9, dtype=torch.float64)
    for step in run(world, z, sampler=tight):
        if step.k == 3:
            for i, t in enumerate(step.times.tolist()):
                torch.testing.assert_close(step.x[i], transported(world, z[i : i + 1], 1.0, t)[0], rtol=0, atol=1e-6)
            step.take(index)
            at, step.x = step.times[index], other
        out = step.x
    truth = torch.cat([transported(world, o[None], t, 0.0) for o, t in zip(other, at.tolist(), strict=True)])
    torch.testing.assert_close(out, truth, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="cannot go to a step"):
        for step in run(world, z, sampler=adaptive()):
            step.goto(0)


def test_gradients_flow_when_asked():
    world, z = mixture_1d(LINEAR), noise((2, 1), seed=0, dtype=torch.float64).requires_grad_()
    tight = adaptive(1e-9, 1e-9, end=1e-6)
    assert not sample(world, z, sampler=tight).requires_grad
    (gradient,) = torch.autograd.grad(sample(world, z, sampler=tight, grad=True).sum(), z)
    h = 1e-5
    with torch.no_grad():
        truth = (transported(world, z + h, 1.0, 0.0) - transported(world, z - h, 1.0, 0.0)) / (2 * h)
    torch.testing.assert_close(gradient, truth, rtol=1e-5, atol=1e-6)


def _nan(x, t):
    return Prediction(x, *LINEAR(t, like=x), x0=x * math.nan)


_nan.schedule = LINEAR
WORLD, Z = oracle.Gaussian([0.0, 1.0], 0.5), noise((3, 2), seed=0)
MISUSE = {
    "steps": (lambda: sample(WORLD, Z, sampler=adaptive(), steps=5), ValueError, "Adaptive has its own steps"),
    "grid": (lambda: sample(WORLD, Z, sampler=adaptive(), grid=grids.uniform), ValueError, "has its own steps"),
    "not called": (lambda: sample(WORLD, Z, sampler=adaptive, steps=5), TypeError, "has neither: was it called"),
    "method": (lambda: adaptive(method="euler"), ValueError, "unknown method 'euler': one of bosh3, dopri5"),
    "tolerance": (lambda: adaptive(0.0), ValueError, "rtol must be a positive number, got 0"),
    "end": (lambda: adaptive(end=0.0), ValueError, r"end must be a time in \(0, 1\), got 0"),
    "nan": (lambda: sample(_nan, Z, sampler=adaptive()), ValueError, "answers nan"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, kind, message = MISUSE[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
