"""Law 1: every row of every plan is exact for data that is one point; equal samplers have equal tables."""

from math import sqrt

import pytest
import torch

from suffuse import grids, samplers
from suffuse.samplers import PlanError, sampler

from .worlds import DETERMINISTIC, RULES, SCHEDULES

SPACINGS = {"uniform": grids.uniform, "logsnr": grids.logsnr, "karras": grids.karras}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_plan_obeys_its_law_on_every_schedule_and_grid(rule, schedule):
    for spacing in SPACINGS.values():
        for n in (1, 2, 3, 8):
            plan = rule.plan(schedule, spacing(schedule, n))  # building is the check
            assert plan.steps == n
            assert 1 <= plan.nfe <= rule.stages * n
        short = rule.plan(schedule, spacing(schedule, 5, start=0.8, end=0.05))
        assert short.nfe == rule.stages * 5, "away from the ends every stage of every step costs its call"


def _ddim(step, drop=0.0):
    return step.b.alpha * step.a.x0 + (1 - drop) * step.b.sigma * step.a.eps


def _stale_alpha(step):
    return step.a.alpha * step.a.x0 + step.b.sigma * step.a.eps


def _loud_noise(step):
    return step.b.alpha * step.a.x0 + sqrt(step.b.sigma**2 - step.posterior_std**2) * step.a.eps + step.b.sigma * step.z


def _double_shift(step):
    b = step.b
    return b.alpha / (1 + b.sigma) * step.a.x0 + b.sigma * step.a.eps


@pytest.mark.parametrize("fault", [_stale_alpha, _loud_noise, _double_shift])
def test_a_faulty_rule_does_not_build(fault):
    schedule = SCHEDULES["vp"]
    with pytest.raises(PlanError, match=fault.__name__ + r"\(\): row 1 "):
        sampler(order=1)(fault).plan(schedule, grids.uniform(schedule, 4))


def test_the_message_of_a_faulty_rule_holds_the_numbers():
    rule, schedule = sampler(order=1)(_ddim), SCHEDULES["linear"]
    rule.plan(schedule, [1.0, 0.5])
    with pytest.raises(PlanError, match=r"row 1 \(t=0.5\) has noise variance 0.2025, the law asks for 0.25"):
        rule(drop=0.1).plan(schedule, [1.0, 0.5])


def test_a_rule_that_multiplies_unknowns_is_no_table():
    def square(step):
        return step.a.x0 * step.a.x0

    with pytest.raises(TypeError, match="linear in x, x0, eps and z"):
        sampler()(square).plan(SCHEDULES["linear"], [1.0, 0.5])


def test_eps_at_clean_data_is_refused():
    def end_corrected(step):
        euler = step.b.alpha * step.a.x0 + step.b.sigma * step.a.eps
        end = step.point(euler, step.b.t)
        return (
            step.b.alpha * step.a.x0 + step.b.sigma * (step.a.eps + end.eps) / 2 + 1e-3 * (step.b.sigma == 0) * end.eps
        )

    with pytest.raises(PlanError, match="sigma = 0 and eps is undefined"):
        sampler()(end_corrected).plan(SCHEDULES["linear"], [1.0, 0.5, 0.0])


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_samplers_that_are_equal_have_equal_tables(schedule):
    s = samplers
    grid = grids.logsnr(schedule, 6)
    euler = sampler()(_flow_euler)

    def plan(rule):
        return rule.plan(schedule, grid)

    assert plan(s.ddim(eta=1.0)) == plan(s.ddpm)
    assert plan(s.dpmpp(order=1)) == plan(s.ddim)
    assert plan(s.dpmpp(order=1, weights="paper")) == plan(s.ddim)
    assert plan(s.dpm_solver(order=1)) == plan(s.ddim)
    assert plan(s.adams(order=1, corrector=0)) == plan(s.ddim)
    assert plan(s.noise_adams(order=1)) == plan(s.ddim)
    assert plan(s.bdia(gamma=0.0)) == plan(s.ddim)
    assert plan(s.langevin(corrections=0)) == plan(s.ddim)
    assert plan(s.adams(order=3, corrector=0)) == plan(s.dpmpp(order=3))
    assert plan(s.dpmpp_multistep_sde(order=1)) == plan(s.ddpm)
    assert plan(s.sa_solver(order=2, tau=1.0)) == plan(s.dpmpp_multistep_sde(order=2))
    assert plan(euler) == plan(s.ddim), "in y = x/(alpha + sigma) against tau, Euler is DDIM on every schedule"
    assert plan(s.res_multistep(order=1)) == plan(s.ddim)
    assert plan(s.ddim(eta=0.5)) != plan(s.ddim)
    assert plan(s.res(order=2)) not in (plan(s.dpmpp_2s), plan(s.dpm_solver(order=2)), plan(s.midpoint))
    assert plan(s.res(order=3)) != plan(s.dpm_solver(order=3))
    assert plan(s.res_multistep(order=2)) not in (plan(s.dpmpp(order=2)), plan(s.dpmpp(order=2, weights="paper")))
    assert plan(s.dpmpp(order=2)) != plan(s.ddim)
    assert plan(s.dpmpp(order=3)) != plan(s.dpmpp(order=3, weights="paper"))
    assert plan(s.ddim) != s.ddim.plan(schedule, grids.logsnr(schedule, 5))


def _flow_euler(step):
    a, b = step.a, step.b
    qa, qb = a.alpha + a.sigma, b.alpha + b.sigma
    return qb * (a.x / qa + (b.sigma / qb - a.sigma / qa) * (a.eps - a.x0))


def test_flow_euler_is_ddim_on_the_linear_schedule():
    euler = sampler()(lambda step: step.a.x + (step.b.t - step.a.t) * (step.a.eps - step.a.x0))
    linear = SCHEDULES["linear"]
    grid = grids.uniform(linear, 10)
    assert euler.plan(linear, grid) == samplers.ddim.plan(linear, grid)


@pytest.mark.parametrize("rule", [r for r in DETERMINISTIC.values() if r.law == "exact"], ids=repr)
def test_the_canonical_weights_on_predictions_sum_to_what_alpha_and_sigma_demand(rule):
    schedule = SCHEDULES["cosine"]
    plan = rule.plan(schedule, grids.uniform(schedule, 6, start=0.95, end=0.02))
    times, table, terms = plan.expand()
    start, weights = table[:, 0], table[:, [kind in ("x0", "x0_neg") for kind, _ in terms]].sum(1)
    a0, s0 = schedule(plan.grid[0])
    for t, x, w in zip(times, start, weights, strict=True):
        alpha, sigma = schedule(float(t))
        assert x == pytest.approx(sigma / s0, rel=1e-10)
        assert w == pytest.approx(alpha - a0 * sigma / s0, abs=1e-10)


def test_a_plan_prints_as_a_table():
    plan = samplers.ddim.plan(SCHEDULES["linear"], [1.0, 0.5, 0.0])
    text = repr(plan).splitlines()
    assert text[0] == "ddim(eta=0.0) on Linear(): 2 steps, 2 evaluations, order 1"
    assert "+0.5000 x0[0] +0.5000 eps[0]" in text[3]


def test_the_executor_keeps_only_what_later_rows_use(monkeypatch):
    schedule = SCHEDULES["linear"]
    plan = samplers.dpmpp(order=3).plan(schedule, grids.uniform(schedule, 12))
    from suffuse.samplers import walk as module

    sizes = []
    row = module.Walk.row
    monkeypatch.setattr(module.Walk, "row", lambda self, *a: (row(self, *a), sizes.append(len(self.values)))[0])
    world_x = torch.zeros(1, 1, dtype=torch.float64)

    from .worlds import mixture_1d

    plan(mixture_1d(schedule), world_x)
    assert max(sizes) <= 3, f"the state and the two newest predictions are all a third order step needs, held {sizes}"
