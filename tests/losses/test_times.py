"""Times have their densities: the k-th of n falls within the k-th of n equal parts."""

import math
from functools import partial

import pytest
import torch

from suffuse import losses, schedules

CPU, N = torch.device("cpu"), 4000


def covers(u, slack=0.0):
    """Whether sorted u has one value in each of n equal parts of (0, 1)."""
    u = u.double().sort().values
    k = torch.arange(len(u), dtype=torch.float64)
    return bool(((u >= k / len(u) - slack) & (u <= (k + 1) / len(u) + slack)).all())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.5), (-1.0, 2.0)])
def test_logit_normal(mean, std):
    t = losses.logit_normal(N, CPU, mean=mean, std=std).double()
    assert covers(torch.special.ndtr((t.logit() - mean) / std), 1e-4)


def test_cosmap_is_the_logsnr_of_the_cosine_schedule():
    t = losses.cosmap(N, CPU).double()
    assert covers(schedules.Cosine().time(schedules.Linear().logsnr(t)), 1e-6)
    assert not covers(t, 1e-3)


@pytest.mark.parametrize("schedule", [schedules.Linear(), schedules.VP(), schedules.VE(), schedules.Discrete.ddpm()])
def test_log_normal_has_edms_levels_on_every_schedule(schedule):
    t = losses.log_normal(N, CPU, schedule=schedule, mean=-1.2, std=1.2).double()
    log_rho = -schedule.logsnr(t) / 2
    u = torch.special.ndtr((log_rho + 1.2) / 1.2)
    ends = (t > 1 - 1e-6) | (t < 2e-3)  # a table has no level below its first, float32 none beyond its last
    inside = u.sort().indices
    k = torch.arange(N, dtype=torch.float64)
    error = ((u[inside] - (k + 0.5) / N).abs())[~ends[inside]]
    assert error.max() < 0.5 / N + 2e-3 and (~ends).float().mean() > 0.9


def test_uniform_in_logsnr():
    schedule = schedules.VP()
    t = losses.uniform_logsnr(N, CPU, schedule=schedule, low=-8, high=6).double()
    assert covers((schedule.logsnr(t) + 8) / 14, 1e-4)


class TestMode:
    def test_zero_is_uniform(self):
        assert covers(losses.mode(N, CPU, scale=0.0), 1e-6)

    @pytest.mark.parametrize("scale", [-1.0, -0.4, 0.8, 1.75])
    def test_it_is_symmetric_and_keeps_every_time(self, scale):
        t = losses.mode(N, CPU, scale=scale).double().sort().values
        torch.testing.assert_close(t, 1 - t.flip(0), rtol=0, atol=4 / N)
        assert t[0] < 0.03 and t[-1] > 0.97

    def test_the_density_in_the_middle_is_that_of_the_paper(self):
        for scale in (-0.8, 0.8, 1.29):
            t = losses.mode(40000, CPU, scale=scale)
            density = ((t - 0.5).abs() < 0.01).double().mean().item() / 0.02
            assert density == pytest.approx(1 / (1 - scale * (math.pi / 2 - 1)), rel=0.05)

    def test_beyond_its_range_is_refused(self):
        with pytest.raises(ValueError, match=r"scale must be in \[-1, 1.752\], got 2"):
            losses.mode(4, CPU, scale=2.0)


class TestShifted:
    def test_it_is_the_schedules_own_shift(self):
        for schedule in (schedules.Linear(), schedules.Cosine(), schedules.VE()):
            torch.manual_seed(3)
            plain = losses.stratified(N, CPU).double()
            torch.manual_seed(3)
            moved = losses.shifted(N, CPU, factor=2.5, schedule=schedule).double()
            inside = moved < 1
            torch.testing.assert_close(
                schedule.logsnr(moved)[inside], schedule.shift(2.5).logsnr(plain)[inside], rtol=1e-3, atol=2e-3
            )

    def test_a_factor_of_one_moves_nothing_and_two_steps_compose(self):
        torch.manual_seed(3)
        plain = losses.logit_normal(N, CPU)
        torch.manual_seed(3)
        same = losses.shifted(N, CPU, factor=1.0, times=losses.logit_normal)
        torch.testing.assert_close(same, plain, rtol=0, atol=1e-6)
        torch.manual_seed(3)
        twice = losses.shifted(N, CPU, factor=2.0, times=partial(losses.shifted, factor=3.0, times=losses.logit_normal))
        torch.manual_seed(3)
        once = losses.shifted(N, CPU, factor=6.0, times=losses.logit_normal)
        torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)
        assert (once > plain).all()

    def test_nothing_is_refused(self):
        with pytest.raises(ValueError, match="factor must be positive, got 0"):
            losses.shifted(4, CPU, factor=0.0)
