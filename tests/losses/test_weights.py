"""A weight means the same whatever the network predicts and wherever it lives."""

import functools

import pytest
import torch

from suffuse import Denoiser, losses, noise, parameterize, schedules
from suffuse.losses import weights
from tests.laws.worlds import PARAMETERIZATIONS, SCHEDULES

WEIGHTS = {
    "eps": weights.eps,
    "x0": weights.x0,
    "v": weights.v,
    "velocity": weights.velocity,
    "edm": weights.edm(0.5),
    "min_snr": weights.min_snr(5.0),
    "soft_min_snr": weights.soft_min_snr(4.0),
    "sigmoid": weights.sigmoid(-1.0),
}
BATCH = {"x": noise((64, 3), seed=0, dtype=torch.float64), "eps": noise((64, 3), seed=1, dtype=torch.float64)}


def _at(times):
    return lambda n, device: times


MIDDLE = _at(torch.linspace(0.2, 0.98, 64, dtype=torch.float64))  # below, VE has x0 = x to 10 digits


class Belief(torch.nn.Module):
    """One belief about (x0, eps), written in any parameterization: networks that differ in what they output only."""

    def __init__(self, predicts, schedule):
        super().__init__()
        self.theta = torch.nn.Parameter(noise((3, 3), seed=2, dtype=torch.float64))
        self.p, self.schedule = parameterize.named(predicts), schedule

    def forward(self, x, t):
        if self.p.tells is not None:
            t = self.schedule.time(-8 * t)
        alpha, sigma = self.schedule(t, like=x)
        if self.p.scale is not None:
            x = x / self.p.scale(alpha, sigma)
        root = (alpha**2 + sigma**2).sqrt()
        v = (x / root) @ self.theta
        x0, eps = (alpha * x / root - sigma * v) / root, (sigma * x / root + alpha * v) / root
        self.output = self.p.write(x0, eps, self.p.row(self.schedule, t, alpha, sigma))
        if self.output.requires_grad:
            self.output.retain_grad()
        return self.output


def test_every_exported_weight_is_swept():
    assert set(WEIGHTS) == set(weights.__all__) - {"Weight", "on_output"}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_gradients_of_all_networks_agree_under_the_jacobian(name, schedule):
    found = {}
    for predicts in PARAMETERIZATIONS:
        net = Belief(predicts, schedule)
        model = Denoiser(net, schedule, PARAMETERIZATIONS[predicts])
        loss = losses.denoising(model, BATCH, times=MIDDLE, weight=WEIGHTS[name])
        loss.mean().backward()
        found[predicts] = (loss.detach(), net.theta.grad, net.output.grad)
    alpha, sigma = schedule(MIDDLE(64, None), like=BATCH["x"])
    rows = {k: p.row(schedule, MIDDLE(64, None), alpha, sigma) for k, p in PARAMETERIZATIONS.items()}
    det = {k: alpha * b - sigma * a for k, (a, b) in rows.items()}  # d output / d v is det / (alpha^2 + sigma^2)
    for predicts, (loss, theta, output) in found.items():
        torch.testing.assert_close(loss, found["v"][0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(theta, found["v"][1], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(output * det[predicts], found["v"][2] * det["v"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "predicts", "schedule"),
    [
        ("eps", "eps", schedules.VP()),
        ("eps", "eps", schedules.Linear()),
        ("x0", "x0", schedules.Cosine()),
        ("x0", "x0", schedules.VE()),
        ("v", "v", schedules.Cosine()),
        ("velocity", "velocity", schedules.Linear()),
        ("edm", "edm", schedules.VE(power=1.0)),
        ("edm", "edm", schedules.Linear()),
        ("edm", "edm", schedules.Discrete.ddpm()),
    ],
)
def test_a_weight_named_after_a_prediction_leaves_that_network_unweighted(name, predicts, schedule):
    net = Belief(predicts, schedule)
    model = Denoiser(net, schedule, predicts)
    plain = losses.denoising(model, BATCH, times=MIDDLE)
    torch.testing.assert_close(
        losses.denoising(model, BATCH, times=MIDDLE, weight=WEIGHTS[name]), plain, rtol=1e-7, atol=0
    )


class TestShape:
    """What the papers say of their weights, without their formulas."""

    low, high = torch.linspace(-18, 0, 40, dtype=torch.float64), torch.linspace(0, 18, 40, dtype=torch.float64)

    def test_min_snr_is_eps_below_gamma_and_gamma_times_x0_above(self):
        gamma = 5.0
        edge = torch.tensor(gamma, dtype=torch.float64).log()
        below, above = self.low + edge, self.high + edge
        torch.testing.assert_close(weights.min_snr(gamma)(below), weights.eps(below))
        torch.testing.assert_close(weights.min_snr(gamma)(above), gamma * weights.x0(above))

    def test_soft_min_snr_is_half_of_min_snr_at_the_corner_and_the_same_far_away(self):
        gamma = torch.tensor(4.0, dtype=torch.float64)
        soft, hard = weights.soft_min_snr(4.0), weights.min_snr(4.0)
        ratio = soft(gamma.log()) / hard(gamma.log())
        assert ratio.item() == pytest.approx(0.5)
        for far in (-15.0, 15.0):
            far = torch.tensor(far, dtype=torch.float64)
            assert (soft(far) / hard(far)).item() == pytest.approx(1, abs=1e-4)

    def test_sigmoid_halves_eps_at_its_bias_keeps_it_in_noise_and_is_a_multiple_of_x0_in_detail(self):
        bias = torch.tensor(-1.0, dtype=torch.float64)
        weight = weights.sigmoid(-1.0)
        assert (weight(bias) / weights.eps(bias)).item() == pytest.approx(0.5)
        torch.testing.assert_close(weight(bias - 16), weights.eps(bias - 16), rtol=1e-6, atol=0)
        torch.testing.assert_close(weight(bias + 16), weights.x0(bias + 16) * bias.exp(), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_they_are_finite_at_both_ends_and_positive(self, name):
        ends = WEIGHTS[name](torch.tensor([-torch.inf, -80.0, 0.0, 80.0, torch.inf]))
        assert ends.isfinite().all() and (ends >= 0).all() and ends[2] > 0


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "velocity", "edm"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_times_that_round_to_an_end_harm_no_run(name, predicts):
    times = _at(torch.tensor([0.0, 1e-30, 0.5, 1 - 2**-24, 1.0]))
    model = Denoiser(lambda x, t: torch.zeros_like(x), schedules.Linear(), predicts)
    batch = {"x": noise((5, 3), seed=0)}
    assert losses.denoising(model, batch, times=times, weight=WEIGHTS[name]).isfinite().all()


@pytest.mark.parametrize("make", [weights.edm, weights.min_snr, weights.soft_min_snr])
def test_a_weight_of_nothing_is_refused(make):
    with pytest.raises(ValueError, match="must be a positive number, got 0"):
        make(0.0)


def test_a_weighted_loss_is_a_partial_of_the_plain_one():
    loss = functools.partial(losses.denoising, weight=weights.min_snr(), times=MIDDLE)
    model = Denoiser(lambda x, t: x, schedules.Cosine(), "v")
    assert loss(model, BATCH).shape == (64,)
