"""Likelihoods: the exact density of what is known, and a density of anything that is not."""

import inspect
import math

import pytest
import torch
from torch import nn

import suffuse as sf
from suffuse import Denoiser, denoiser, noise, oracle, schedules
from suffuse.samplers import bits_per_dim, log_prob

from ..laws.worlds import SCHEDULES

LINEAR = schedules.Linear()
MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.4]], dtype=torch.float64)
COVS = torch.tensor([[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.1]], [[0.3, -0.2], [-0.2, 0.3]]]).double()
MIXTURE = oracle.Mixture([0.2, 0.5, 0.3], MEANS, COVS, schedule=LINEAR)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_mixture_in_the_plane_has_its_exact_density(schedule):
    world, calls = MIXTURE.on(schedule), []

    def counting(x, t, to, base):
        calls.append(len(x))
        return base(x, t)

    x = world.sample(30, seed=0)
    counted = denoiser(counting, parts=[world])
    got = log_prob(counted, x, prior=lambda x1: world.log_prob(x1, 1.0))
    torch.testing.assert_close(got, world.log_prob(x), rtol=0, atol=2e-3)
    assert len(calls) <= 100 and sum(calls) / 30 < 70
    if schedule(1.0)[0] == 0:
        torch.testing.assert_close(log_prob(world, x), got, rtol=0, atol=1e-9)
    else:
        unit = oracle.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0, schedule=schedule)
        torch.testing.assert_close(log_prob(unit, x), unit.log_prob(x), rtol=0, atol=2e-3)


def test_the_error_follows_the_tolerance():
    x = MIXTURE.sample(30, seed=0)
    errors = [(log_prob(MIXTURE, x, rtol=r, atol=r) - MIXTURE.log_prob(x)).abs().max() for r in (1e-3, 1e-5, 1e-7)]
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 20 and errors[2] < 1e-5, errors


@pytest.mark.parametrize("shape", [(64,), (1, 8, 8)])
def test_hutchinson_in_64_dimensions(shape):
    means = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    world = oracle.Mixture([1, 1, 2, 2, 1], means, 0.2, schedule=LINEAR)
    x = world.sample(12, seed=1)
    loose = {"trace": "hutchinson", "rtol": 1e-4, "atol": 1e-4}
    rms = {}
    for n in (1, 16, 64):
        error = (log_prob(world, x, seed=0, probes=n, **loose) - world.log_prob(x)) / 64
        rms[n] = error.square().mean().sqrt().item()
        assert error.mean().abs() < 3.5 * rms[n] / 12**0.5 + 1e-4, "no bias"
    assert rms[16] < 0.02 and 2 < rms[1] / rms[16] < 8, "the deviation falls like one over the root of the probes"
    assert error.abs().max() < 1e-3, "with as many probes as dimensions it is gone"


def test_one_probe_is_exact_where_the_jacobian_is_diagonal():
    world = oracle.Gaussian(torch.linspace(-1, 1, 80).double(), torch.linspace(0.1, 1.0, 80).double(), schedule=LINEAR)
    x = world.sample(5, seed=0)
    got = log_prob(world, x, seed=4, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, world.log_prob(x), rtol=0, atol=5e-3)


class Swirl(nn.Module):
    """A velocity that is no gradient of anything; `told` turns it off by row."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = nn.Linear(3, 24), nn.Linear(24, 2)
        self.drop = nn.Dropout(0.0)

    def forward(self, x, t, told=None):
        y = self.outside(self.drop(torch.tanh(self.inside(torch.cat([x, t[:, None].to(x)], 1)))))
        return -x + (y if told is None else told.to(x)[:, None] * y)


def _swirl(**kind):
    torch.manual_seed(3)
    net = Swirl()
    for p in net.parameters():
        nn.init.normal_(p, std=0.7)
    return Denoiser(net.double(), LINEAR, "velocity", **kind)


def test_the_density_of_a_network_integrates_to_one():
    model = _swirl()
    model.net.eval()
    axis = torch.linspace(-20, 20, 81, dtype=torch.float64)
    density = log_prob(model, torch.cartesian_prod(axis, axis), rtol=1e-4, atol=1e-4).exp()
    assert density.sum().item() * 0.5**2 == pytest.approx(1.0, abs=2e-3)
    assert density.max() * 0.5**2 < 0.05, "spread over many cells"


def test_networks_are_in_eval_mode_and_get_their_own_back():
    model, modes = _swirl(), []
    model.net.train()
    model.net.register_forward_pre_hook(lambda net, args: modes.append(net.training))
    log_prob(model, torch.zeros(2, 2, dtype=torch.float64))
    assert len(modes) > 10 and not any(modes)
    assert model.net.training and model.net.drop.training


@pytest.mark.parametrize("how", [{}, {"trace": "hutchinson", "seed": 7}])
@pytest.mark.parametrize("kind", ["network", "mixture"])
def test_a_row_depends_on_itself_alone(kind, how):
    if kind == "network":
        model = _swirl(condition=["told"]).given(told=torch.tensor([0.0, 1.0, 0.5, 0.2, 1.0]))
    else:
        model = MIXTURE.given(label=torch.tensor([1, 0, 2, 2, 0]))
    x = noise((5, 2), seed=0, dtype=torch.float64)
    together = log_prob(model, x, **how)
    for i in range(5):
        alone = log_prob(model.rows(slice(i, i + 1)), x[i : i + 1], first=i, **how)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)


def test_labels_are_of_the_density():
    told = MIXTURE.given(label=torch.tensor([0, 1, 2]))
    x = told.sample(3, seed=0)
    torch.testing.assert_close(log_prob(told, x), told.log_prob(x), rtol=0, atol=2e-3)


def test_its_gradient_is_the_score_and_flows_only_when_asked():
    x = MIXTURE.sample(4, seed=0).requires_grad_()
    assert not log_prob(MIXTURE, x).requires_grad
    for how in ({}, {"trace": "hutchinson", "seed": 0, "probes": 1}):
        world = MIXTURE if not how else oracle.Gaussian(MEANS[0], torch.tensor([0.2, 0.1]).double(), schedule=LINEAR)
        total = log_prob(world, x, rtol=1e-7, atol=1e-7, grad=True, **how).sum()
        (gradient,) = torch.autograd.grad(total, x)
        torch.testing.assert_close(gradient, world.score(x.detach(), 0.0), rtol=1e-3, atol=1e-3)
    model = _swirl()
    log_prob(model, x.detach(), rtol=1e-3, atol=1e-3, grad=True).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.net.parameters())


def test_float32_is_enough():
    x = MIXTURE.sample(20, seed=0)
    got = log_prob(MIXTURE, x.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), MIXTURE.log_prob(x), rtol=0, atol=0.01)


def test_bits_per_dimension_of_a_uniform_density_are_the_bits_of_a_level():
    flat = torch.tensor([-12 * math.log(2.0)])
    assert bits_per_dim(flat, 12).item() == pytest.approx(8)
    assert bits_per_dim(flat, 12, levels=32).item() == pytest.approx(5)
    assert bits_per_dim(torch.zeros(1), 12, levels=4, low=0.0).item() == pytest.approx(2)


def test_it_is_at_the_top():
    assert sf.log_prob is log_prob and "seed" in inspect.signature(sf.log_prob).parameters


WIDE = oracle.Gaussian(torch.zeros(65), 1.0)
MISUSE = {
    "no seed": (lambda: log_prob(WIDE, torch.zeros(1, 65)), "Hutchinson's trace in 65 dimensions is random: give it"),
    "kind": (lambda: log_prob(WIDE, torch.zeros(1, 65), trace="skilling"), "'exact' or 'hutchinson', got 'skilling'"),
    "no probe": (lambda: log_prob(WIDE, torch.zeros(1, 65), seed=0, probes=0), "probes must be at least 1, got 0"),
    "pixels": (lambda: log_prob(WIDE, torch.full((1, 65), 255.0), seed=0), "x0 runs from 255"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, message = MISUSE[name]
    with pytest.raises(ValueError, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
