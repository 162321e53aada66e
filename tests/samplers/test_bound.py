"""The variational bound: exact for an exact chain, below the likelihood otherwise, and nearer with more steps."""

import pytest
import torch
from torch import nn

from suffuse import Denoiser, denoiser, noise, oracle, schedules
from suffuse.parameterize import Prediction
from suffuse.samplers import variational_bound

from ..laws.worlds import SCHEDULES

LINEAR = schedules.Linear()
N = 4000
MEANS = torch.tensor([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.4]], dtype=torch.float64)


def told(world, fraction):
    """A denoiser that also says a fraction: a number, or a function of two times."""

    def tell(x, t, to, base):
        p = base(x, t)
        f = fraction(t, to) if callable(fraction) else fraction
        return Prediction(p.x, p.alpha, p.sigma, x0=p.x0, eps=p.eps, fraction=torch.full_like(x, f))

    return denoiser(tell, parts=[world])


def exact(schedule, var):
    """The fraction that makes p(x_b | x_a) exact for N(mean, var): Bayes' rule for two jointly normal states."""

    def fraction(t, to):
        if to == 0:
            return 0.0
        (aa, sa), (ab, sb) = schedule(t), schedule(to)
        var_a, var_b = aa**2 * var + sa**2, ab**2 * var + sb**2
        wanted = torch.tensor(var_b - (aa / ab * var_b) ** 2 / var_a)
        large = torch.tensor(sa**2 - (aa / ab * sb) ** 2)
        small = large * sb**2 / sa**2
        return ((wanted / small).log() / (large / small).log()).item()

    return fraction


def assert_mean(values, expected, sharp):
    """Within four standard errors, which must be small."""
    error = values.std() / len(values) ** 0.5
    assert error < sharp, error
    assert abs(values.mean() - expected) < 4 * error + 1e-9, (values.mean(), expected, error)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_an_exact_chain_loses_nothing(schedule):
    """Unit Gaussian data: prior, steps and decoder are all exact, so on average the bound is the likelihood."""
    world = oracle.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0, schedule=schedule)
    model = told(world, exact(schedule, 1.0))
    x = torch.tensor([[2.5, -2.0]], dtype=torch.float64)
    late = [schedule.time(v) for v in (-1.0, 0.0, 1.5, 5.0)] + [0.0]  # where sample would start, prior and all
    for how in ({"steps": 4}, {"grid": late}):
        bound = variational_bound(model, x.expand(N, -1), seed=0, **how)
        assert_mean(bound, world.log_prob(x), 0.05)


def test_so_does_one_of_other_spread_when_the_decoder_is_told():
    world = oracle.Gaussian(torch.tensor([0.5, -0.3], dtype=torch.float64), 0.2, schedule=LINEAR)
    times, x = [1.0, 0.7, 0.4, 0.1, 0.0], torch.tensor([[0.6, -0.9]], dtype=torch.float64)
    std = (0.2 * 0.1**2 / (0.9**2 * 0.2 + 0.1**2)) ** 0.5  # of x0 given x at t = 0.1
    same = {"grid": times, "seed": 1, "decoder_std": std}
    bound = variational_bound(told(world, exact(LINEAR, 0.2)), x.expand(N, -1), **same)
    assert_mean(bound, world.log_prob(x), 0.05)
    for worse in ({"decoder_std": 2 * std}, {"variance": "small"}, {"variance": "large"}):
        loose = variational_bound(told(world, exact(LINEAR, 0.2)), x.expand(N, -1), **(same | worse))
        assert loose.mean() < world.log_prob(x) - 0.03, worse


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("name", ["linear", "vp", "ve", "ddpm"])
def test_it_is_a_bound_on_average_and_tightens_with_steps(name, variance):
    world = oracle.Mixture([0.2, 0.5, 0.3], MEANS, [0.2, 0.1, 0.3], schedule=SCHEDULES[name])
    x = world.sample(N, seed=0)
    gaps, errors = [], []
    for steps in (8, 32, 128):
        gap = world.log_prob(x) - variational_bound(world, x, steps=steps, seed=2, variance=variance)
        gaps.append(gap.mean().item())
        errors.append((gap.std() / N**0.5).item())
    assert all(gap > -3 * error for gap, error in zip(gaps, errors, strict=True)), (gaps, errors)
    assert gaps[2] < 0.5 * gaps[1] < 0.25 * gaps[0] and gaps[2] < 1.0, gaps


@pytest.mark.parametrize(("fraction", "variance"), [(0.0, "small"), (1.0, "large")])
def test_the_ends_of_the_learned_range_are_the_fixed_variances(fraction, variance):
    world = oracle.Mixture([0.2, 0.5, 0.3], MEANS, [0.2, 0.1, 0.3], schedule=LINEAR)
    x = world.sample(6, seed=0)
    learned = variational_bound(told(world, fraction), x, steps=6, seed=0)
    torch.testing.assert_close(learned, variational_bound(world, x, steps=6, seed=0, variance=variance))
    fixed = variational_bound(told(world, 0.5), x, steps=6, seed=0, variance=variance)
    torch.testing.assert_close(learned, fixed), "what is asked for comes before what is there"


def test_a_row_depends_on_itself_alone():
    world = oracle.Mixture([0.2, 0.5, 0.3], MEANS, [0.2, 0.1, 0.3], schedule=LINEAR)
    x = world.sample(5, seed=0)
    together = variational_bound(world, x, steps=5, seed=3)
    alone = variational_bound(world, x[3:4], steps=5, seed=3, first=3)
    torch.testing.assert_close(alone[0], together[3], rtol=0, atol=1e-9)
    assert (variational_bound(world, x, steps=5, seed=4) - together).abs().min() > 1e-6


def test_networks_are_in_eval_mode_and_gradients_flow_only_when_asked():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model, x = Denoiser(lambda x, t: net(x), LINEAR), noise((3, 2), seed=0)
    assert not variational_bound(model, x, steps=3, seed=0).requires_grad
    variational_bound(model, x, steps=3, seed=0, grad=True).sum().backward()
    assert net[0].weight.grad.abs().max() > 0

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = net

        def forward(self, x, t):
            return self.inside(x)

    whole = Denoiser(Net().train(), LINEAR)
    assert torch.equal(*(variational_bound(whole, x, steps=3, seed=0) for _ in range(2))), "no dropout"
    assert net.training


WORLD, X = oracle.Gaussian([0.0, 1.0], 0.5), torch.zeros(2, 2)
MISUSE = {
    "ends above 0": (lambda: variational_bound(WORLD, X, seed=0, grid=[1.0, 0.5]), "this grid ends at t=0.5"),
    "variance": (lambda: variational_bound(WORLD, X, seed=0, steps=3, variance="tiny"), "or 'learned', got 'tiny'"),
    "not learned": (
        lambda: variational_bound(WORLD, X, seed=0, steps=3, variance="learned"),
        "this prediction has no learned variance",
    ),
    "no budget": (lambda: variational_bound(WORLD, X, seed=0), "say how long"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, message = MISUSE[name]
    with pytest.raises(ValueError, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
