"""Law 3: every representation converts to every other and back; exact oracles agree with autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suffuse import oracle, parameterize, schedules
from suffuse.denoise import Denoiser, call
from suffuse.parameterize import Prediction

from .worlds import PARAMETERIZATIONS, SCHEDULES, mixture_1d

T = torch.linspace(0.02, 0.98, 33, dtype=torch.float64)


def test_every_exported_schedule_is_swept():
    kinds = {type(s) for s in SCHEDULES.values()}
    assert kinds == {getattr(schedules, name) for name in schedules.__all__} - {schedules.Schedule}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
class TestSchedule:
    def test_time_inverts_logsnr(self, schedule):
        torch.testing.assert_close(schedule.time(schedule.logsnr(T)), T, rtol=0, atol=1e-12)
        for t in T.tolist():
            assert schedule.time(schedule.logsnr(t)) == pytest.approx(t, abs=1e-12)

    def test_logsnr_is_known_at_the_ends(self, schedule):
        assert schedule(0.0) == (1.0, 0.0)
        assert schedule.logsnr(0.0) == math.inf
        assert schedule.time(math.inf) == pytest.approx(0.0, abs=1e-12)
        assert (schedule.logsnr(1.0) == -math.inf) == (schedule(1.0)[0] == 0)

    def test_floats_and_tensors_agree(self, schedule):
        alpha, sigma = schedule(T)
        for t, a, s in zip(T.tolist(), alpha.tolist(), sigma.tolist(), strict=True):
            assert schedule(t) == pytest.approx((a, s), rel=1e-12)

    def test_logsnr_falls_and_the_norm_is_one(self, schedule):
        alpha, sigma = schedule(T)
        assert (schedule.logsnr(T).diff() < 0).all()
        torch.testing.assert_close(schedule.norm(alpha, sigma), torch.ones_like(T), rtol=1e-12, atol=0)

    def test_rates_are_the_derivatives(self, schedule):
        if isinstance(schedule, schedules.Discrete):
            t, h = (torch.arange(20, 980, 37, dtype=torch.float64) + 0.5) / 1000, 1e-5  # between its kinks
        else:
            t, h = T, 1e-6
        for rate, high, low in zip(schedule.rates(t), schedule(t + h), schedule(t - h), strict=True):
            torch.testing.assert_close(rate, (high - low) / (2 * h), rtol=1e-5, atol=1e-6)
        assert schedule.rates(float(t[3])) == pytest.approx([r[3].item() for r in schedule.rates(t)], rel=1e-10)

    def test_json(self, schedule):
        assert schedules.from_json(schedule.to_json()) == schedule

    def test_retiming_there_and_back_changes_nothing(self, schedule):
        world = mixture_1d(schedule)
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        net = Wrapped(world)
        other = schedules.Linear()
        there = net.on(other, clip=True)
        back = there.on(schedule)
        for t in (0.1, 0.5, 0.9, torch.linspace(0.05, 0.95, 9, dtype=torch.float64)):
            torch.testing.assert_close(call(back, x, t).x0, world(x, t).x0, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(call(back, x, t).eps, world(x, t).eps, rtol=1e-9, atol=1e-9)

    def test_a_retimed_denoiser_is_the_oracle_of_the_other_schedule(self, schedule):
        world = mixture_1d(schedule)
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        other = schedules.Linear()
        moved, truth = Wrapped(world).on(other, clip=True), world.on(other)
        for t in (0.1, 0.5, 0.85):
            torch.testing.assert_close(moved(x, t).x0, truth(x, t).x0, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(moved(x, t).eps, truth(x, t).eps, rtol=1e-9, atol=1e-9)


def Wrapped(world, predicts="v"):
    """A network that answers exactly: the oracle's prediction written in a parameterization."""
    p = parameterize.named(predicts)

    def net(x, t):
        if p.scale is not None:
            alpha, sigma = world.schedule(time(t), like=x)
            x = x / p.scale(alpha, sigma)
        truth = world(x, time(t))
        alpha, sigma = world.schedule(time(t), like=x)
        return p.write(truth.x0, truth.eps, p.row(world.schedule, time(t), alpha, sigma))

    def time(told):
        return told if p.tells is None else world.schedule.time(-8 * told)

    return Denoiser(net, world.schedule, predicts)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_parameterization_reads_back_what_was_written(name, schedule):
    p = PARAMETERIZATIONS[name]
    world = mixture_1d(schedule)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    model = Wrapped(world, p.name)
    # t near 0 only down to where x0 - x is above rounding
    for t in (0.15, 0.5, 0.9, torch.linspace(0.15, 0.95, 9, dtype=torch.float64)):
        got, truth = model(x, t), world(x, t)
        torch.testing.assert_close(got.x0, truth.x0, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(got.eps, truth.eps, rtol=1e-6, atol=1e-7)
        alpha, sigma = schedule(t, like=x)
        torch.testing.assert_close(alpha * got.x0 + sigma * got.eps, x, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("predicts", "t", "error"), [("eps", 1.0, "alpha=0"), ("x0", 0.0, "sigma=0")])
def test_where_the_output_says_nothing_there_is_one_clear_error(predicts, t, error):
    model = Denoiser(lambda x, t: x, schedules.Linear(), predicts)
    with pytest.raises(ValueError, match=f"predicts {predicts} says nothing at .*{error}"):
        model(torch.zeros(2, 1), t)


@pytest.mark.parametrize("name", ["v", "velocity", "edm"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_v_velocity_and_edm_are_regular_at_both_ends(name, t):
    p = parameterize.named(name)
    linear = schedules.Linear()
    alpha, sigma = linear(t)
    x0, eps = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.2]], dtype=torch.float64)
    row = p.row(linear, t, alpha, sigma)
    got = p.read(p.write(x0, eps, row), alpha * x0 + sigma * eps, alpha, sigma, row)
    assert got.x0.item() == pytest.approx(0.7)
    assert got.eps.item() == pytest.approx(-0.2)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(-3, 3), st.floats(-3, 3), st.floats(-4, 4))
def test_predictions_are_closed_under_arithmetic(t, a, b, w):
    alpha, sigma = schedules.Cosine()(t)
    x = torch.tensor([0.4], dtype=torch.float64)
    p = Prediction(x, alpha, sigma, x0=torch.tensor([a], dtype=torch.float64))
    q = Prediction(x, alpha, sigma, eps=torch.tensor([b], dtype=torch.float64))
    mixed = q + (p - q) * w
    torch.testing.assert_close(alpha * mixed.x0 + sigma * mixed.eps, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed.x0, q.x0 + w * (p.x0 - q.x0), rtol=1e-9, atol=1e-9)


def test_asking_for_one_does_not_pay_for_the_other():
    asked = []
    p = Prediction(
        torch.zeros(1),
        0.5,
        0.5,
        x0=lambda: asked.append("x0") or torch.ones(1),
        eps=lambda: asked.append("eps") or torch.ones(1),
    )
    assert asked == []
    _ = p.x0, p.x0
    assert asked == ["x0"]


class TestOracle:
    worlds = {
        "full": oracle.Mixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], [[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0], [0, 0.5]]]),
        "diagonal": oracle.Mixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], [[0.2, 0.3], [0.1, 0.5]]),
        "isotropic": oracle.Mixture([1, 2, 1], [[-2.0, 0.0], [1.0, 1.0], [0.0, -1.0]], [0.2, 0.3, 0.05]),
        "gaussian": oracle.Gaussian([0.5, -1.0], [[0.5, 0.2], [0.2, 0.4]]),
        "empirical": oracle.Empirical(torch.tensor([[0.0, 1.0], [1.0, -1.0], [-1.0, 0.5]])),
    }

    @pytest.mark.parametrize("name", worlds)
    @pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
    def test_the_score_is_the_gradient_of_the_likelihood(self, name, schedule):
        world = self.worlds[name].on(schedule)
        x = torch.randn(6, 2, dtype=torch.float64).requires_grad_()
        for t in (0.3, 0.8, torch.linspace(0.2, 1, 6, dtype=torch.float64)):
            (gradient,) = torch.autograd.grad(world.log_prob(x, t).sum(), x)
            torch.testing.assert_close(world.score(x, t), gradient, rtol=1e-9, atol=1e-9)
            alpha, sigma = schedule(t, like=x)
            p = world(x, t)
            torch.testing.assert_close(p.eps, -sigma * gradient, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("name", ["full", "diagonal", "isotropic", "gaussian"])
    def test_the_density_integrates_to_one_and_has_the_stated_moments(self, name):
        world = self.worlds[name]
        axis = torch.linspace(-6, 6, 241)
        grid = torch.cartesian_prod(axis, axis)
        density = world.log_prob(grid).exp() * 0.05**2
        assert density.sum().item() == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(density @ grid, world.mean(), rtol=0, atol=2e-3)
        centred = grid - world.mean()
        torch.testing.assert_close(
            torch.einsum("n,ni,nj->ij", density, centred, centred), world.cov(), rtol=0, atol=5e-3
        )

    @pytest.mark.parametrize("name", worlds)
    def test_samples_have_the_stated_moments(self, name):
        world = self.worlds[name]
        x = world.sample(40000, seed=0)
        torch.testing.assert_close(x.mean(0), world.mean(), rtol=0, atol=0.03)
        torch.testing.assert_close(torch.cov(x.T), world.cov(), rtol=0, atol=0.05)
        assert torch.equal(world.sample(7, seed=0), x[:7])

    def test_the_posterior_is_prior_times_likelihood(self):
        world = self.worlds["full"]
        A, y, sigma = torch.tensor([[1.0, -0.5]]), torch.tensor([0.4]), 0.3
        post = world.posterior(A, y, sigma)
        x = torch.randn(200, 2)
        likelihood = -((x @ A.T - y) ** 2).sum(1) / (2 * sigma**2)
        constant = world.log_prob(x) + likelihood - post.log_prob(x)
        torch.testing.assert_close(constant, constant[:1].expand(200), rtol=0, atol=2e-3)

    def test_a_class_is_its_components(self):
        world = oracle.Mixture([0.2, 0.3, 0.5], [[-2.0], [0.0], [2.0]], [0.1, 0.2, 0.3], labels=[0, 0, 1])
        alone = oracle.Mixture([0.2, 0.3], [[-2.0], [0.0]], [0.1, 0.2])
        x = torch.linspace(-2, 2, 7)[:, None]
        torch.testing.assert_close(world.given(label=0)(x, 0.4).x0, alone(x, 0.4).x0)
        torch.testing.assert_close(world.given(label=0).log_prob(x), alone.log_prob(x))
        assert (world.given(label=1).sample(500, seed=1) > 0).all()


@pytest.mark.parametrize("name", ["linear", "cosine", "zero-snr", "ve"])
def test_an_edm_network_is_never_told_infinity(name):
    from suffuse import noise, sample
    from suffuse.nets import MLP

    net = MLP(2, width=16, depth=1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = sample(Denoiser(net, SCHEDULES[name], "edm"), noise((3, 2), seed=0), steps=4)
    assert x.isfinite().all()


def test_data_and_noise_of_one_seed_are_independent():
    from suffuse import noise

    x, z = oracle.Gaussian([0.0, 0.0], 1.0).sample(4000, seed=0), noise((4000, 2), seed=0)
    assert (x * z).mean().abs() < 0.05
