"""Couplings choose the noise, keep the rows of the data, and pair as the theory says."""

import itertools
import math
from functools import partial

import pytest
import torch

from suffuse import Denoiser, losses, noise, oracle, schedules


def _drawn(x0):
    torch.manual_seed(4)
    return torch.randn_like(x0)


def test_transport_in_one_dimension_sorts():
    x0 = noise((257, 1), seed=0)
    torch.manual_seed(4)
    same, eps = losses.optimal_transport(x0)
    assert same is x0
    assert torch.equal(eps[x0[:, 0].argsort()], _drawn(x0).sort(0).values)


def test_no_other_pairing_of_a_batch_costs_less():
    x0 = noise((6, 1, 2, 2), seed=1)
    torch.manual_seed(4)
    _, eps = losses.optimal_transport(x0)
    drawn = _drawn(x0)
    cost = (x0 - eps).square().sum().item()
    others = [(x0 - drawn[list(p)]).square().sum().item() for p in itertools.permutations(range(6))]
    assert cost == pytest.approx(min(others), rel=1e-6) and cost < sorted(others)[1] * (1 - 1e-6)


def test_a_large_batch_nears_the_distance_of_two_gaussians():
    x0 = torch.tensor([2.0]) + 0.5 * noise((1000, 1), seed=2)
    _, eps = losses.optimal_transport(x0)
    assert (x0 - eps).square().mean().item() == pytest.approx(2.0**2 + 0.5**2, rel=0.05)  # m^2 + (s - 1)^2


def test_the_flow_becomes_straight():
    """What x_t leaves open of eps - x0: 2 at t = 1/2 for independent unit Gaussians, 0 under transport."""
    x0 = noise((1000, 1), seed=3)
    left = {}
    for name in ("independent", "optimal_transport"):
        _, eps = getattr(losses, name)(x0)
        x, u = (x0 + eps) / 2, eps - x0
        left[name] = (u - x * (x * u).mean() / x.square().mean()).square().mean().item()
    assert left["independent"] == pytest.approx(2, rel=0.15) and left["optimal_transport"] < 0.05


@pytest.mark.parametrize(("k", "expected"), [(1, 0.0), (2, 1 / math.sqrt(math.pi)), (3, 1.5 / math.sqrt(math.pi))])
def test_far_from_the_origin_the_nearest_of_k_is_the_largest_of_k(k, expected):
    x0 = torch.full((20000, 1), 1e3)
    _, eps = losses.immiscible(x0, k=k)
    assert eps.mean().item() == pytest.approx(expected, abs=0.03)


def test_a_coupling_is_used_and_conditions_keep_their_rows():
    x0 = noise((32, 1), seed=5)
    seen = {}
    model = Denoiser(
        lambda x, t, label: seen.update(x=x, t=t, label=label) or x, schedules.Linear(), "velocity", ("label",)
    )
    losses.denoising(model, {"x": x0, "label": torch.arange(32)}, coupling=losses.optimal_transport)
    eps = (seen["x"] - (1 - seen["t"][:, None]) * x0) / seen["t"][:, None]
    order = x0[:, 0].argsort()
    assert (eps[order].diff(dim=0) > -1e-3).all() and torch.equal(seen["label"], torch.arange(32))


def test_given_pairs_are_trained_on_as_they_are():
    x0, eps = noise((32, 2), seed=0), noise((32, 2), seed=1)
    exact = Denoiser(lambda x, t: eps - x0, schedules.Linear(), "velocity")
    assert losses.denoising(exact, {"x": x0, "eps": eps}).max() == 0
    assert losses.denoising(exact, {"x": x0}).min() > 0


def test_offset_noise_is_shared_by_the_pixels_of_a_channel():
    model = Denoiser(lambda x, t: torch.zeros_like(x), schedules.VP(), "eps")  # its loss is |eps|^2
    x0 = torch.zeros(4000, 2, 4, 4)
    seen = []
    model.parameterization = type(model.parameterization)(
        "eps", lambda schedule, t, alpha, sigma: (0.0, 1.0), scale=None, tells=None
    )
    net = model.net
    model.net = lambda x, t: seen.append((x, t)) or net(x, t)
    losses.denoising(model, {"x": x0}, offset=0.5)
    x, t = seen[0]
    eps = x / schedules.VP()(t, like=x)[1]
    assert eps.mean((2, 3)).var().item() == pytest.approx(0.25 + 1 / 16, rel=0.05)
    assert (eps - eps.mean((2, 3), keepdim=True)).square().mean().item() == pytest.approx(15 / 16, rel=0.02)
    across = torch.corrcoef(eps.mean((2, 3)).T)[0, 1]
    assert abs(across) < 0.06, "channels are independent of each other"


def test_perturbed_inputs_are_those_of_a_noisier_world_with_the_target_left_alone():
    """The best linear prediction k x of eps has k = sigma / (alpha^2 c + sigma^2 (1 + gamma^2)) on N(0, c)."""
    c, gamma, level = 0.49, 0.4, 0.6
    schedule = schedules.Linear()
    seen = []

    def net(x, t):
        seen.append(x)
        return torch.zeros_like(x)

    x0, eps = 0.7 * noise((200000, 1), seed=0), noise((200000, 1), seed=1)
    model = Denoiser(net, schedule, "eps")
    at = {"times": lambda n, device: torch.full((n,), level)}
    loss = losses.denoising(model, {"x": x0, "eps": eps}, perturb=gamma, **at)
    torch.testing.assert_close(loss, eps.square()[:, 0])
    x = seen[0]
    k = (x * eps).mean() / x.square().mean()
    alpha, sigma = schedule(level)
    assert k.item() == pytest.approx(sigma / (alpha**2 * c + sigma**2 * (1 + gamma**2)), rel=0.01)


def test_the_default_loss_draws_what_it_always_drew():
    model = Denoiser(lambda x, t: x, schedules.Linear(), "velocity")
    x0 = oracle.Gaussian([0.0, 0.0], 1.0).sample(8, seed=0)
    torch.manual_seed(1)
    plain = losses.denoising(model, {"x": x0})
    torch.manual_seed(1)
    again = losses.denoising(model, {"x": x0}, coupling=losses.independent, offset=0.0, perturb=0.0)
    torch.manual_seed(1)
    eps = torch.randn_like(x0)
    t = losses.stratified(8, x0.device)[:, None]
    assert torch.equal(plain, again)
    assert torch.equal(plain, ((1 - t) * x0 + t * eps - (eps - x0)).square().mean(1))


def test_a_coupling_without_draws_is_refused():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        losses.denoising(
            Denoiser(lambda x, t: x, schedules.Linear()),
            {"x": torch.zeros(2, 1)},
            coupling=partial(losses.immiscible, k=0),
        )
