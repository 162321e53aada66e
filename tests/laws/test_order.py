"""Law 2: error falls as the declared order, with exact history and from a cold start; stochastic samplers converge."""

import math

import numpy as np
import pytest
import torch

from suffuse import grids, oracle
from suffuse.parameterize import Prediction

from .worlds import DETERMINISTIC, RULES, SCHEDULES, STOCHASTIC, mixture_1d, moments, transported, world_for


def _slope(sizes, errors):
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def _errors(rule, schedule, sizes, history, span=(-4.0, 4.0)):
    world = mixture_1d(schedule)
    start, end = schedule.time(span[0]), schedule.time(span[1])
    x = torch.linspace(-1.6, 1.6, 24, dtype=torch.float64)[:, None] * math.hypot(*schedule(start))
    truth = transported(world, x, start, end)
    errors = []
    for n in sizes:
        grid = grids.logsnr(schedule, n, start=start, end=end)
        given = 5 if history else 0
        states = [x] + [transported(world, x, start, float(t)) for t in grid[1 : given + 1]]
        plan = rule.plan(schedule, grid, given=given)
        out = plan(world_for(rule, world), states if given else x)
        errors.append((out - truth).square().mean().sqrt().item())
    return errors


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "ve"])
@pytest.mark.parametrize("rule", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_error_falls_at_the_declared_order(rule, name):
    sizes = [64, 128, 256, 512]
    slope = _slope(sizes, _errors(rule, SCHEDULES[name], sizes, history=True))
    assert slope == pytest.approx(rule.order, abs=0.25)


@pytest.mark.parametrize("rule", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_a_cold_start_costs_what_is_declared(rule):
    sizes = [48, 96, 192, 384]
    # begins where the prediction already bends, so that the low-order first steps are felt
    slope = _slope(sizes, _errors(rule, SCHEDULES["linear"], sizes, history=False, span=(-1.0, 3.0)))
    assert slope == pytest.approx(rule.cold_order, abs=0.25)


M, V = 0.7, 0.4


@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
@pytest.mark.parametrize("rule", STOCHASTIC.values(), ids=STOCHASTIC)
def test_a_stochastic_sampler_converges_in_mean_and_variance(rule, name):
    schedule = SCHEDULES[name]

    def denoise(t):
        alpha, sigma = schedule(t)
        gain = alpha * V / (alpha**2 * V + sigma**2)
        return M - gain * alpha * M, gain

    def consistent(t):  # the exact consistency function, which this sampler is for
        alpha, sigma = schedule(t)
        gain = math.sqrt(V / (alpha**2 * V + sigma**2))
        return M - gain * alpha * M, gain

    exact = rule.name == "consistency"
    errors, sizes = [], [32, 64, 128, 256]
    for n in sizes:
        start = 0.98
        plan = rule.plan(schedule, grids.logsnr(schedule, n, start=start))
        const, linear = moments(plan, consistent if exact else denoise)
        alpha, sigma = schedule(start)
        mean = const + linear[0] * alpha * M
        variance = linear[0] ** 2 * (alpha**2 * V + sigma**2) + (linear[1:] ** 2).sum()
        errors.append(abs(mean - M) + abs(variance - V))
    if exact:
        assert max(errors) < 1e-12
    else:
        # a Gaussian may superconverge; it may not fall short
        assert _slope(sizes, errors) > rule.order - 0.25
        assert errors[-1] < 0.02


@pytest.mark.parametrize("rule", STOCHASTIC.values(), ids=STOCHASTIC)
def test_samples_have_the_moments_that_propagation_predicts(rule):
    """Ties the executor, with its Brownian noise, to the affine propagation above."""
    from suffuse import noise, sample

    schedule = SCHEDULES["linear"]
    world = oracle.Gaussian(
        torch.tensor([M], dtype=torch.float64), torch.tensor([V], dtype=torch.float64), schedule=schedule
    )
    grid = grids.uniform(schedule, 8)
    plan = rule.plan(schedule, grid)

    def denoise(t):
        alpha, sigma = schedule(t)
        gain = alpha * V / (alpha**2 * V + sigma**2)
        return M - gain * alpha * M, gain

    const, linear = moments(plan, denoise)
    x = sample(world, noise((20000, 1), seed=3, dtype=torch.float64), sampler=plan, seed=4)
    assert x.mean().item() == pytest.approx(const, abs=0.025)
    assert x.var().item() == pytest.approx((linear**2).sum(), rel=0.05)


def test_the_oracle_of_this_law_is_not_vacuous():
    """A denoiser that is wrong by a little does not converge: the slopes above can fail."""
    schedule = SCHEDULES["linear"]
    world = mixture_1d(schedule)

    class Wrong:
        def __init__(self):
            self.schedule = schedule

        def __call__(self, x, t):
            p = world(x, t)
            return Prediction(x, p.alpha, p.sigma, x0=1.01 * p.x0)

    x = torch.linspace(-1.6, 1.6, 24, dtype=torch.float64)[:, None]
    truth = transported(world, x, 0.9, 0.1)
    rule = DETERMINISTIC["heun()"]
    errors = [
        (rule.plan(schedule, grids.uniform(schedule, n, start=0.9, end=0.1))(Wrong(), x) - truth).abs().max()
        for n in (32, 128)
    ]
    assert errors[1] > 0.5 * errors[0]


@pytest.mark.parametrize("rule", [r for r in RULES.values() if r.law == "consistent"], ids=repr)
def test_a_consistent_rule_nears_the_law_as_steps_shrink(rule):
    """Its defect on point-mass data falls at least as fast as h."""
    schedule, sizes = SCHEDULES["vp"], [32, 64, 128, 256]
    defects = [max(rule.plan(schedule, grids.logsnr(schedule, n, start=0.95, end=0.05)).defect) for n in sizes]
    assert _slope(sizes, defects) > 0.75
    assert defects[-1] < 0.05
