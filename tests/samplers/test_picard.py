"""Picard iteration: any plan's own result, in fewer rounds than the plan has calls."""

import pytest
import torch

from suffuse import BrownianPath, Denoiser, denoiser, guide, noise, oracle, run, sample, samplers, schedules
from suffuse.nets import MLP
from suffuse.parameterize import Prediction
from suffuse.samplers import ddim, ddpm, dpmpp, picard

from ..laws.worlds import RULES, SCHEDULES, mixture_1d, world_for

LINEAR = schedules.Linear()
WORLD = oracle.Mixture(
    torch.ones(8), torch.randn(8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.1
)
Z = noise((6, 16), seed=0, dtype=torch.float64)


def solved(model, z, sampler, **how):
    """The result, the number of rounds, and the rows of each call."""
    rows = []

    def counting(x, t, to, base):
        rows.append(len(x))
        return base(x, t, to=to)

    for step in run(denoiser(counting, parts=[model]), z, sampler=sampler, **how):
        last = step
    assert last.nfe == len(rows)
    return last.x, len(rows), rows


def end(steps):
    return list(steps)[-1]


def rms(x):
    return x.flatten(1).square().mean(1).sqrt().max().item()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_sampler_comes_out_as_its_plan_does(rule):
    for name, window in (("linear", None), ("vp", 3)):
        world, z = world_for(rule, mixture_1d(SCHEDULES[name])), noise((5, 1), seed=0, dtype=torch.float64)
        plan = samplers.plan_for(world.schedule, sampler=rule, steps=8)
        last = end(run(world, z, sampler=picard(rule, 1e-8, window), steps=8, seed=3))
        torch.testing.assert_close(last.x, sample(world, z, sampler=plan, seed=3), rtol=0, atol=1e-6)
        assert last.nfe <= plan.nfe


@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "ddpm"])
@pytest.mark.parametrize("kind", ["mixture", "network"])
def test_a_hundred_steps_take_few_rounds(name, kind):
    schedule = SCHEDULES[name]
    model = WORLD.on(schedule) if kind == "mixture" else _network(schedule)
    direct = sample(model, Z, sampler=ddim, steps=100)
    for tolerance, most in ((1e-2, 11), (1e-3, 13), (1e-6, 18)):
        x, rounds, rows = solved(model, Z, picard(ddim, tolerance), steps=100)
        assert rms(x - direct) < tolerance
        assert 2 < rounds <= most and rows[0] == 6 * 100, (rounds, tolerance)
        assert rows == sorted(rows, reverse=True), "what has settled is not asked again"
    x, rounds, rows = solved(model, Z, picard(ddim, 1e-3, window=20), steps=100)
    assert rms(x - direct) < 1e-3 and max(rows) == 6 * 20
    assert rounds <= 25


def _network(schedule):
    torch.manual_seed(1)
    net = MLP(16, width=64, depth=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Denoiser(net.double(), schedule, "v")


def test_without_tolerance_it_is_the_plan_to_rounding():
    for rule in (ddim, dpmpp(order=3), samplers.heun):
        plan = samplers.plan_for(LINEAR, sampler=rule, steps=9)
        x, rounds, _ = solved(WORLD, Z, picard(plan, 0.0))
        torch.testing.assert_close(x, plan(WORLD, Z), rtol=0, atol=1e-12)
        assert rounds <= plan.nfe


def test_what_moves_with_the_frozen_drift_is_found_in_one_round():
    """eps - x0 that does not depend on x: the first guess is right, the second round only says so."""
    shift = torch.linspace(-1, 1, 16, dtype=torch.float64)

    def steady(x, t):
        alpha, sigma = LINEAR(t, like=x)
        return Prediction(x, alpha, sigma, x0=x - sigma * shift, eps=x + alpha * shift)

    steady.schedule = LINEAR
    for rule in (ddim, dpmpp(order=2), samplers.rk4, samplers.unipc, samplers.noise_adams):
        plan = samplers.plan_for(LINEAR, sampler=rule, grid=[0.9 - 0.04 * k for k in range(21)])
        last = end(run(steady, Z, sampler=picard(plan, 1e-9)))
        assert last.nfe == 2, (rule, last.nfe)
        torch.testing.assert_close(last.x, plan(steady, Z * (0.9**2 + 0.1**2) ** 0.5), rtol=0, atol=1e-9)


def test_a_change_that_cancels_over_a_row_is_a_change():
    means = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    world = oracle.Mixture([0.5, 0.5], means, 0.05, schedule=LINEAR)
    z = noise((8, 1), seed=0, dtype=torch.float64) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    x = sample(world, z, sampler=picard(ddim, 1e-4), steps=30)
    assert rms(x - sample(world, z, sampler=ddim, steps=30)) < 1e-4


def test_conditions_are_repeated_for_the_batch_and_two_times_are_told():
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.0, -1.0]], dtype=torch.float64)
    world = oracle.Mixture([1, 1, 1], means, [0.3, 0.2, 0.1], schedule=LINEAR)
    labels, w = torch.tensor([0, 1, 2, 1]), torch.linspace(1.0, 3.0, 4, dtype=torch.float64)

    def hastened(x, t, to, pos, neg):
        yes, no = pos(x, t), neg(x, t)
        gap = torch.as_tensor(to, dtype=x.dtype).reshape(-1, 1) if isinstance(to, torch.Tensor) else to
        return no + (yes - no) * (1 + 0.2 * gap)

    model = denoiser(hastened, parts=[guide(world.given(label=labels), world, w), world])
    z = noise((4, 2), seed=1, dtype=torch.float64)
    for window in (None, 5):
        x = end(run(model, z, sampler=picard(dpmpp, 1e-9, window), steps=15)).x
        torch.testing.assert_close(x, sample(model, z, sampler=dpmpp, steps=15), rtol=0, atol=1e-8)


def test_given_states_and_partners_start_a_run():
    plan = samplers.bdia.plan(LINEAR, [1.0, 0.8, 0.5, 0.2, 0.0], given=1)
    states = [Z, 0.9 * Z]
    x = end(picard(plan, 1e-10).run(WORLD, states)).x
    torch.testing.assert_close(x, plan(WORLD, states), rtol=0, atol=1e-9)


def test_one_seed_is_one_noise():
    """A path refined in another order would be another path inside its leaves, so steps here are finer than a leaf."""
    grid = torch.linspace(0.5, 0.49, 12, dtype=torch.float64)
    plan = ddpm.plan(LINEAR, grid)
    direct = plan(WORLD, Z, BrownianPath(Z.shape, 4, dtype=torch.float64))
    x = end(picard(plan, 1e-10).run(WORLD, Z, BrownianPath(Z.shape, 4, dtype=torch.float64))).x
    torch.testing.assert_close(x, direct, rtol=0, atol=1e-9)


def test_progress_is_shown_and_nothing_can_be_changed():
    steps = list(run(WORLD, Z, sampler=picard(ddim, 1e-3, window=10), steps=30))
    assert steps[0].t == 1.0 and steps[-1].s == 0.0 and steps[-1].k == 29 and steps[-1].n == 30
    assert all(a.s == b.t and b.s < b.t and b.nfe > a.nfe for a, b in zip(steps, steps[1:], strict=False))
    plan = samplers.plan_for(LINEAR, sampler=ddim, steps=30)
    walked = {step.k: step.x for step in plan.run(WORLD, Z)}
    assert all(rms(step.x - walked[step.k]) < 2e-3 for step in steps)
    p = steps[3].prediction
    torch.testing.assert_close(p.alpha * p.x0 + p.sigma * p.eps, p.x)
    assert p.x.shape == Z.shape

    def change(what):
        for step in run(WORLD, Z, sampler=picard(ddim), steps=10):
            what(step)

    with pytest.raises(ValueError, match="cannot be set"):
        change(lambda step: setattr(step, "x", step.x + 1))
    with pytest.raises(ValueError, match="cannot jump"):
        change(lambda step: step.goto(0))
    with pytest.raises(ValueError, match="rows cannot be taken"):
        change(lambda step: step.take(torch.tensor([0])))


def test_gradients_are_those_of_the_plan():
    z = Z[:2].clone().requires_grad_()
    assert not sample(WORLD, z, sampler=picard(ddim), steps=8).requires_grad
    found = [
        torch.autograd.grad(sample(WORLD, z, sampler=s, steps=8, grad=True).square().sum(), z)[0]
        for s in (ddim, picard(ddim, 1e-10))
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-7)


def test_a_start_from_noised_data():
    x0 = WORLD.sample(6, seed=1).double()
    how = {"steps": 20, "start": (x0, 0.6)}
    x = sample(WORLD, Z, sampler=picard(ddim, 1e-8), **how)
    torch.testing.assert_close(x, sample(WORLD, Z, sampler=ddim, **how), rtol=0, atol=1e-6)


MISUSE = {
    "a number": (lambda: picard(3), TypeError, "a rule or a plan in parallel, got int"),
    "tolerance": (lambda: picard(ddim, -1.0), ValueError, "tolerance must be a number of at least 0, got -1"),
    "window": (lambda: picard(ddim, 1e-3, 0), ValueError, "window must be at least 1, got 0"),
    "no seed": (lambda: sample(WORLD, Z, sampler=picard(ddpm), steps=4), ValueError, "draws noise: give it a seed"),
    "another schedule": (
        lambda: sample(WORLD, Z, sampler=picard(ddim.plan(schedules.Cosine(), [1.0, 0.0]))),
        ValueError,
        r"use denoiser.on\(schedule\)",
    ),
    "a plan and steps": (
        lambda: sample(WORLD, Z, sampler=picard(ddim.plan(LINEAR, [1.0, 0.0])), steps=3),
        ValueError,
        "a PicardPlan has its own grid",
    ),
    "given": (
        lambda: list(picard(ddim.plan(LINEAR, [1.0, 0.5, 0.0], given=1)).run(WORLD, Z)),
        ValueError,
        "starts from 2 given states, got 1",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, kind, message = MISUSE[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
