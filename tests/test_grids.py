"""Grids: every one begins, falls and ends where it says, spreads what it is named after, and changes no law."""

import inspect
import math

import numpy as np
import pytest
import torch

from suffuse import grids, noise, oracle, sample, samplers, schedules

from .laws.worlds import RULES, SCHEDULES, moments

STEPS = (1, 2, 5, 50)
SPREADS = {  # grids of (schedule, steps): all but those made of times or indices
    name: getattr(grids, name)
    for name in grids.__all__
    if list(inspect.signature(getattr(grids, name)).parameters)[:2] == ["schedule", "steps"]
}
OF_TABLES = {"leading", "linspace", "trailing"}
DISCRETE = {name: s for name, s in SCHEDULES.items() if isinstance(s, schedules.Discrete)}
OTHERS = {name: s for name, s in SCHEDULES.items() if name not in DISCRETE}


def test_every_exported_grid_is_tested_here():
    assert set(grids.__all__) - set(SPREADS) == {"indices", "restart", "time_travel"}
    assert set(SPREADS) > OF_TABLES


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", sorted(SPREADS.keys() - OF_TABLES))
@pytest.mark.parametrize("span", [(1.0, 0.0), (0.8, 0.05), (0.4, 0.0)])
def test_a_grid_falls_from_its_start_to_its_end(name, schedule, span):
    start, end = span
    for steps in STEPS:
        grid = SPREADS[name](schedule, steps, start=start, end=end)
        assert grid.dtype == torch.float64 and len(grid) == steps + 1
        assert (grid[0], grid[-1]) == (start, end)
        assert (grid.diff() < 0).all()


@pytest.mark.parametrize("schedule", DISCRETE.values(), ids=DISCRETE)
@pytest.mark.parametrize("name", sorted(OF_TABLES))
def test_a_grid_of_a_table_asks_its_indices_only(name, schedule):
    for steps in STEPS:
        grid = SPREADS[name](schedule, steps)
        assert len(grid) == steps + 1 and grid[-1] == 0 and (grid.diff() < 0).all()
        index = grid[:-1] * 1000 - 1
        torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-9)
        assert index.min() >= 0 and (name == "leading" or grid[0] == 1)
    late = SPREADS[name](schedule, 20, start=0.4)
    assert late[0] == 0.4 and late[-1] == 0 and (late.diff() < 0).all()


@pytest.mark.parametrize("name", sorted(SPREADS.keys() - OF_TABLES - {"uniform"}))
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_network_of_a_table_is_never_asked_below_its_first_index(name, shift):
    schedule = schedules.Discrete.ddpm() if shift == 1 else schedules.Discrete.ddpm().shift(shift)
    for steps in (2, 5, 50, 200):
        inner = SPREADS[name](schedule, steps)[:-1] * 1000 - 1
        assert inner.min() > -1e-6


def _even(values):
    gaps = torch.as_tensor(values, dtype=torch.float64).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", OTHERS.values(), ids=OTHERS)
class TestWhatIsSpreadEvenly:
    def test_uniform_t(self, schedule):
        _even(grids.uniform(schedule, 7, start=0.9, end=0.1))

    def test_quadratic_the_root_of_t(self, schedule):
        for start, end in ((1.0, 0.0), (0.9, 0.1)):
            _even(grids.quadratic(schedule, 7, start=start, end=end).sqrt())

    def test_cosine_the_angle(self, schedule):
        _even(grids.cosine(schedule, 7).acos())

    def test_logsnr(self, schedule):
        _even(schedule.logsnr(grids.logsnr(schedule, 7, start=0.9, end=0.3)))

    def test_karras_the_seventh_root_of_the_noise(self, schedule):
        alpha, sigma = schedule(grids.karras(schedule, 7, start=0.9, end=0.25))
        _even((sigma / alpha) ** (1 / 7))

    @pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (1.0, 1.0), (2.0, 0.7)])
    def test_beta_the_mass_of_its_density(self, schedule, a, b):
        """By quadrature; a substitution t = sin^2(u) takes the infinite ends of the density away."""
        grid = grids.beta(schedule, 7, a=a, b=b)
        u = torch.linspace(0, math.pi / 2, 400_001, dtype=torch.float64)
        middle = (u[1:] + u[:-1]) / 2
        density = middle.sin() ** (2 * a - 1) * middle.cos() ** (2 * b - 1)
        below = torch.cat([torch.zeros(1, dtype=torch.float64), density.cumsum(0)]) / density.sum()
        at = np.interp(grid.sqrt().asin().numpy(), u.numpy(), below.numpy())
        np.testing.assert_allclose(-np.diff(at), 1 / 7, atol=1e-4)


def test_on_a_table_the_same_is_spread_down_to_the_first_index():
    schedule = schedules.Discrete.ddpm()
    _even(grids.quadratic(schedule, 7)[:-1].sqrt())
    grid = grids.cosine(schedule, 7)[:-1]
    _even(((grid - grid[-1]) / (1 - grid[-1])).acos())


def test_a_shifted_schedule_shifts_every_grid():
    """uniform on it asks at t' = 3t/(1 + 2t) of the flow itself, with the same table: no shifted grid is needed."""
    flow = schedules.Linear()
    t = grids.uniform(flow, 8)
    for rule in (samplers.dpmpp(order=2), samplers.heun, samplers.ddpm):
        shifted, own = rule.plan(flow.shift(3.0), t), rule.plan(flow, 3 * t / (1 + 2 * t))
        np.testing.assert_allclose(shifted.expand()[1], own.expand()[1], rtol=1e-9, atol=1e-12)


def test_indices_are_the_times_a_table_was_trained_at():
    table = schedules.Discrete.scaled_linear()
    keep = torch.tensor([1 - b for b in table.betas], dtype=torch.float64).cumprod(0)
    for given in ([999, 500, 3, 0], torch.tensor([999, 500, 3, 0]), np.array([999, 500, 3, 0])):
        grid = grids.indices(table, given)
        assert grid[-1] == 0
        torch.testing.assert_close(table(grid[:-1])[0] ** 2, keep[[999, 500, 3, 0]])
    assert grids.indices(table, [999, 0], end=0.0005)[-1] == 0.0005
    assert grids.indices(table, [999, 500, 3], start=0.6).tolist() == [0.6, 0.501, 0.004, 0.0]
    torch.testing.assert_close(grids.indices(table, range(999, -1, -50)), grids.trailing(table, 20))


DDPM = schedules.Discrete.ddpm()
MISUSE = {
    "an index of no table": (lambda: grids.indices(schedules.Linear(), [3]), TypeError, "of a Discrete schedule"),
    "an index beyond": (lambda: grids.indices(DDPM, [1000, 3]), ValueError, r"in 0..999, got 1000"),
    "half an index": (lambda: grids.indices(DDPM, [5.5]), ValueError, "got 5.5"),
    "an index twice": (lambda: grids.indices(DDPM, [7, 3, 3]), ValueError, "indices must fall .* 3 follows 3"),
    "indices that rise": (lambda: grids.indices(DDPM, [0, 999]), ValueError, "999 follows 0"),
    "an end above an index": (lambda: grids.indices(DDPM, [99, 0], end=0.01), ValueError, "from 0.001 to 0.01"),
    "a beta of zero": (lambda: grids.beta(DDPM, 5, a=0.0), ValueError, "positive numbers, got 0 and 0.6"),
    "turned round": (lambda: grids.quadratic(DDPM, 5, start=0.2, end=0.7), ValueError, "got 0.2 to 0.7"),
    "too many steps": (lambda: grids.beta(schedules.Linear(), 50, b=0.02), ValueError, "repeats or rises: step"),
    "restart outside": (lambda: grids.restart([1, 0.2], between=(0.1, 0.5)), ValueError, "0.2 <= low < high <= 1, got"),
    "restart turned round": (lambda: grids.restart([1, 0.0], between=(0.5, 0.1)), ValueError, r"got \(0.5, 0.1\)"),
    "restart of a restart": (
        lambda: grids.restart([1, 0.2, 0.5, 0.0], between=(0.1, 0.3)),
        ValueError,
        "0.5 follows 0.2",
    ),
    "half a restart": (lambda: grids.restart([1, 0.0], between=(0.1, 0.3), times=0.5), ValueError, "got 0.5"),
    "another way down": (
        lambda: grids.restart([1, 0.0], between=(0.1, 0.3), down=[0.4, 0.1]),
        ValueError,
        "from high=0.3 to low=0.1, it goes from 0.4 to 0.1",
    ),
    "a jump too far": (
        lambda: grids.time_travel([1, 0.5, 0.0], jump=3, repeats=2),
        ValueError,
        r"jump .* in 1..2, got",
    ),
    "never": (lambda: grids.time_travel([1, 0.5, 0.0], jump=1, repeats=0), ValueError, "repeats .* got 0"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, kind, message = MISUSE[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200


class TestGridsThatRise:
    BASE = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]

    def test_a_restart_goes_back_up_and_comes_down_again(self):
        for low, high in ((0.4, 0.8), (0.3, 0.7), (0.0, 1.0), (0.2, 0.3)):
            grid = grids.restart(self.BASE, between=(low, high), times=3).tolist()
            ups = [(a, b) for a, b in zip(grid, grid[1:], strict=False) if b > a]
            assert ups == [(low, high)] * 3
            once = sorted({*self.BASE, low}, reverse=True)
            first = grid.index(low)
            assert grid[: first + 1] == [t for t in once if t >= low]
            inside = [t for t in once if low <= t < high]
            assert grid[first + 1 :] == 3 * [high, *inside] + [t for t in once if t < low]

    def test_a_way_down_of_its_own(self):
        grid = grids.restart(self.BASE, between=(0.2, 0.6), times=2, down=[0.6, 0.5, 0.4, 0.3, 0.2]).tolist()
        assert grid == [1.0, 0.8, 0.6, 0.4, 0.2] + [0.6, 0.5, 0.4, 0.3, 0.2] * 2 + [0.0]

    def test_time_travel_walks_every_block_again(self):
        for jump, repeats in ((1, 3), (2, 2), (5, 4), (3, 1)):
            grid = grids.time_travel(self.BASE, jump=jump, repeats=repeats).tolist()
            down = [(a, b) for a, b in zip(grid, grid[1:], strict=False) if b < a]
            up = [(a, b) for a, b in zip(grid, grid[1:], strict=False) if b > a]
            walked = 5 // jump * jump
            for k, piece in enumerate(zip(self.BASE, self.BASE[1:], strict=False)):
                assert down.count(piece) == (repeats if k >= 5 - walked else 1)
            assert len(up) == walked // jump * (repeats - 1)
            assert all(self.BASE.index(a) - self.BASE.index(b) == jump for a, b in up)

    def test_none_at_all_is_the_grid_itself(self):
        assert grids.restart(self.BASE, between=(0.4, 0.8), times=0).tolist() == self.BASE
        assert grids.time_travel(self.BASE, jump=2, repeats=1).tolist() == self.BASE

    def test_only_a_rising_sampler_takes_them(self):
        grid = grids.restart(self.BASE, between=(0.4, 0.8))
        with pytest.raises(ValueError, match=r"the grid must fall .* 0.8 follows 0.4"):
            samplers.ddim.plan(schedules.Linear(), grid)
        assert samplers.ddim.rising().plan(schedules.Linear(), grid).nfe == 7


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nothing_from_before_a_rise_is_used_after_it(rule):
    """What was predicted on the way down belonged to other noise."""
    plan = rule.rising().plan(schedules.Cosine(), [0.9, 0.8, 0.7, 0.6, 0.5, 0.85, 0.75, 0.65, 0.55, 0.3])
    top = next(k for k, row in enumerate(plan.rows) if row.main and row.t == 0.85)
    for row in plan.rows[top + 1 :]:
        assert min(i for kind, i in row.terms if kind != "z") >= top


MEAN, VAR = 0.7, 0.4
RISING = {
    "restart": lambda base: grids.restart(base, between=(0.15, 0.6), times=3),
    "time travel": lambda base: grids.time_travel(base, jump=(len(base) - 1) // 4, repeats=3),
}


def _belief(schedule):
    def answer(t):
        alpha, sigma = schedule(t)
        gain = alpha * VAR / (alpha**2 * VAR + sigma**2)
        return MEAN - gain * alpha * MEAN, gain

    return answer


def _off(plan, schedule, start):
    """How far the last state's mean and variance are from those of the data, exactly: nothing is sampled."""
    const, linear = moments(plan, _belief(schedule))
    alpha, sigma = schedule(start)
    mean = const + linear[0] * alpha * MEAN
    variance = linear[0] ** 2 * (alpha**2 * VAR + sigma**2) + (linear[1:] ** 2).sum()
    return abs(mean - MEAN) + abs(variance - VAR)


@pytest.mark.parametrize("name", ["linear", "vp", "ve"])
@pytest.mark.parametrize("rule", [samplers.ddim, samplers.heun, samplers.dpmpp(order=2), samplers.ddpm], ids=repr)
@pytest.mark.parametrize("kind", RISING)
def test_going_back_up_leaves_the_law_of_the_samples_as_it_was(kind, rule, name):
    """What is off is discretisation only: it is hardly more than without the rises, and goes away with it."""
    schedule, start, plain, rising = SCHEDULES[name], 0.98, [], []
    for n in (16, 128):
        base = grids.logsnr(schedule, n, start=start)
        plain.append(_off(rule.plan(schedule, base), schedule, start))
        rising.append(_off(rule.rising().plan(schedule, RISING[kind](base)), schedule, start))
    assert rising[1] < 3 * plain[1] < 0.1
    assert rising[1] < rising[0] / 4 or rising[1] < 2e-4


@pytest.mark.parametrize("kind", RISING)
@pytest.mark.parametrize("rule", [samplers.ddim, samplers.ddpm], ids=repr)
def test_what_is_drawn_on_the_way_up_is_new(rule, kind):
    """Ties the executor and its Brownian path, which runs back and forth here, to the propagation above."""
    schedule = schedules.Linear()
    plan = rule.rising().plan(schedule, RISING[kind](grids.uniform(schedule, 8)))
    const, linear = moments(plan, _belief(schedule))
    world = oracle.Gaussian(torch.tensor([MEAN], dtype=torch.float64), torch.tensor([VAR], dtype=torch.float64))
    x = sample(world, noise((20000, 1), seed=3, dtype=torch.float64), sampler=plan, seed=4)
    assert x.mean().item() == pytest.approx(const, abs=0.025)
    assert x.var().item() == pytest.approx((linear**2).sum(), rel=0.05)
