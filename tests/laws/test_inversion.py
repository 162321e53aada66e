"""Samplers that can be run back exactly: from noise to data and back, and from data to noise and back."""

import math

import pytest
import torch

from suffuse import grids, noise, run, sample, samplers

from .worlds import SCHEDULES, mixture_1d


def _last(steps):
    out = None
    for step in steps:
        out = step
    return out


def _noise(schedule, grid):
    return noise((40, 1), seed=0, dtype=torch.float64) * math.hypot(*schedule(float(grid[0])))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("p", [0.93, 0.8, 1.0])
class TestEDICT:
    def test_noise_comes_back(self, schedule, p):
        world, grid, rule = mixture_1d(schedule), grids.logsnr(schedule, 20), samplers.edict(p=p)
        x = _noise(schedule, grid)
        end = _last(rule.plan(schedule, grid).run(world, x))
        back = rule.plan(schedule, grid.flip(0), backward=True, partner=True)
        start = _last(back.run(world, [end.x, end.partner]))
        size = x.abs().max().item()
        torch.testing.assert_close(start.x, x, rtol=0, atol=1e-9 * size)
        torch.testing.assert_close(start.partner, x, rtol=0, atol=1e-9 * size)

    def test_data_comes_back(self, schedule, p):
        world, grid, rule = mixture_1d(schedule), grids.logsnr(schedule, 20), samplers.edict(p=p)
        x = world.sample(40, seed=1).double()
        noised = _last(rule.plan(schedule, grid.flip(0), backward=True).run(world, x))
        end = _last(rule.plan(schedule, grid, partner=True).run(world, [noised.x, noised.partner]))
        torch.testing.assert_close(end.x, x, rtol=0, atol=1e-9)
        torch.testing.assert_close(end.partner, x, rtol=0, atol=1e-9)


def test_ddim_does_not_come_back():
    """What exact inversion is for: at 20 steps the plain sampler run backward is off by far more than rounding."""
    schedule = SCHEDULES["cosine"]
    world, grid = mixture_1d(schedule), grids.logsnr(schedule, 20, end=0.01)
    x = _noise(schedule, grid)
    end = samplers.ddim.plan(schedule, grid)(world, x)
    start = samplers.ddim.plan(schedule, grid.flip(0), backward=True)(world, end)
    assert (start - x).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["linear", "cosine", "vp"])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_bdia_comes_back_with_the_inverse_gamma_from_its_last_two_states(name, gamma):
    schedule = SCHEDULES[name]
    world, grid = mixture_1d(schedule), grids.logsnr(schedule, 20, start=0.99)
    x = _noise(schedule, grid)
    states = [x, *(step.x for step in samplers.bdia(gamma=gamma).plan(schedule, grid).run(world, x))]
    back = samplers.bdia(gamma=1 / gamma).plan(schedule, grid.flip(0), given=1, backward=True)
    torch.testing.assert_close(back(world, [states[-1], states[-2]]), x, rtol=0, atol=1e-9)


def test_the_two_states_meet_as_steps_shrink():
    schedule = SCHEDULES["linear"]
    world = mixture_1d(schedule)
    x = noise((40, 1), seed=0, dtype=torch.float64)
    apart = []
    for n in (20, 40, 80):
        end = _last(samplers.edict.plan(schedule, grids.logsnr(schedule, n)).run(world, x))
        apart.append((end.x - end.partner).abs().max().item())
    assert 0 < apart[2] < apart[1] / 1.6 < apart[0] / 2.5


def test_rows_are_taken_from_both_states():
    schedule, index = SCHEDULES["cosine"], torch.tensor([2, 0, 2])
    world, x = mixture_1d(schedule), noise((4, 1), seed=0, dtype=torch.float64)
    whole = _last(run(world, x, sampler=samplers.edict, steps=6))
    for step in run(world, x, sampler=samplers.edict, steps=6):
        if step.k == 2:
            mine = step.partner
            step.take(index)
            assert torch.equal(step.partner, mine[index])
        out = step
    torch.testing.assert_close(out.x, whole.x[index])
    torch.testing.assert_close(out.partner, whole.partner[index])


def test_other_samplers_have_no_partner():
    world = mixture_1d(SCHEDULES["cosine"])
    step = next(run(world, noise((2, 1), seed=0, dtype=torch.float64), sampler=samplers.heun, steps=3))
    assert step.partner is None


def test_what_cannot_be_started_is_refused():
    schedule = SCHEDULES["cosine"]
    world = mixture_1d(schedule)
    with pytest.raises(ValueError, match="from a partner or from given=2"):
        samplers.edict.plan(schedule, [1.0, 0.5, 0.2, 0.0], given=2, partner=True)
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\], got 0"):
        sample(world, torch.zeros(1, 1), sampler=samplers.edict(p=0.0), steps=2)
    with pytest.raises(ValueError, match="starts from 2 given states, got 1"):
        samplers.edict.plan(schedule, [1.0, 0.0], partner=True)(world, torch.zeros(1, 1))
