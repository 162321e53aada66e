"""CFG++: the negative's own path, pushed towards what is wanted after every step."""

import pytest
import torch

from suffuse import Denoiser, grids, guide, noise, oracle, run, sample, samplers, schedules
from suffuse.nets import DiT, Label

from .worlds import SCHEDULES

WORLD = oracle.Mixture(
    torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64),
    torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.3]], dtype=torch.float64),
    torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
    labels=[0, 1, 1],
)
X = noise((9, 2), seed=5, dtype=torch.float64)


def _two(schedule=WORLD.schedule):
    world = WORLD.on(schedule)
    return world.given(label=0), world


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("w", [0.3, 1.0, 1.7])
def test_each_step_is_ddim_of_a_guidance_that_grows_as_steps_shrink(schedule, w):
    """The published relation of the two scales: w_CFG = w alpha_b sigma_a / (alpha_b sigma_a - alpha_a sigma_b)."""
    pos, neg = _two(schedule)
    grid = grids.logsnr(schedule, 8)
    x = y = X * sum(v * v for v in schedule(1.0)) ** 0.5
    x = samplers.cfgpp.plan(schedule, grid)(guide(pos, neg, w), x)
    for s, t in zip(grid.tolist(), grid[1:].tolist(), strict=False):
        (a, b), (c, d) = schedule(s), schedule(t)
        y = samplers.ddim.plan(schedule, [s, t])(guide(pos, neg, w * c * b / (c * b - a * d)), y)
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_the_negatives_sampler_pushed_after_every_step(order):
    schedule, w = schedules.Cosine(), 0.7
    pos, neg = _two(schedule)
    grid = grids.logsnr(schedule, 8)
    guided = sample(guide(pos, neg, w), X, sampler=samplers.cfgpp(order=order), grid=grid)
    before = X
    for step in run(neg, X, sampler=samplers.dpmpp(order=order), grid=grid):
        push = pos(before, step.t).x0 - neg(before, step.t).x0
        step.x = before = step.x + schedule(step.s)[0] * w * push
    torch.testing.assert_close(guided, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_no_weight_is_the_negative_alone(order):
    pos, neg = _two()
    guided = sample(guide(pos, neg, 0.0), X, sampler=samplers.cfgpp(order=order), steps=8)
    torch.testing.assert_close(guided, sample(neg, X, sampler=samplers.dpmpp(order=order), steps=8))


def test_a_weight_of_one_is_still_noised_with_the_negative():
    """For every other sampler it is off, and the negative is not asked; here it is asked when its eps is wanted."""
    pos, neg = _two()
    one = sample(guide(pos, neg, 1.0), X, sampler=samplers.cfgpp, steps=8)
    torch.testing.assert_close(one, sample(guide(pos, neg, torch.ones(9)), X, sampler=samplers.cfgpp, steps=8))
    assert (one - sample(pos, X, sampler=samplers.ddim, steps=8)).abs().max() > 0.05


def test_twice_the_steps_guide_harder():
    """Its docstring says that there is no limit: the push of every step stays, so it is shown that it does."""
    pos = oracle.Gaussian(torch.tensor([1.0], dtype=torch.float64), 0.5)
    neg = oracle.Gaussian(torch.tensor([0.0], dtype=torch.float64), 0.5)
    x = torch.zeros(1, 1, dtype=torch.float64)
    pushed = [sample(guide(pos, neg, 0.5), x, sampler=samplers.cfgpp, steps=n).item() for n in (20, 40, 80)]
    assert 1.7 < pushed[1] / pushed[0] < 2.3
    assert 1.7 < pushed[2] / pushed[1] < 2.3


def test_outside_its_interval_guidance_is_off():
    pos, neg = _two()
    guided = guide(pos, neg, 3.0, between=(0.0, 0.0))
    off = sample(guided, X, sampler=samplers.cfgpp, steps=8)
    assert torch.equal(off, sample(pos, X, sampler=samplers.ddim, steps=8))
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    offered = guide(pos, neg, 3.0, between=(0.4, 0.6))(X, t).negative
    inside = ((t >= 0.4) & (t <= 0.6))[:, None]
    torch.testing.assert_close(offered.eps, torch.where(inside, neg(X, t).eps, pos(X, t).eps))


def test_rows_of_a_prediction_take_its_negative_along():
    pos, neg = _two()
    index = torch.tensor([3, 3, 0])
    for w in (1.0, 2.0):
        got = guide(pos, neg, w)(X, 0.5).rows(index).negative
        torch.testing.assert_close(got.eps, neg(X[index], 0.5).eps)


def test_a_network_is_read_as_its_negative_too():
    """The executor folds a network's raw output into its sums: also the negative's, where it comes alone."""
    net = DiT(1, patch=2, width=32, depth=2, heads=2, conditions={"label": Label(10)})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model, x = Denoiser(net.eval(), schedules.Linear(), "velocity"), noise((2, 1, 8, 8), seed=0)
    told = model.given(label=[1, 2])
    for order in (1, 2):
        rule = samplers.cfgpp(order=order)
        alone, batched = (sample(guide(told, model, w), x, sampler=rule, steps=5) for w in (1.0, torch.ones(2)))
        torch.testing.assert_close(alone, batched, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("who", [WORLD, guide(WORLD, WORLD, 2.0).on(schedules.Cosine())], ids=["plain", "wrapped"])
def test_a_denoiser_without_a_negative_is_refused(who):
    with pytest.raises(ValueError, match=r"cfgpp\(order=1\) renoises with the negative's eps: hand it sf.guide\(pos, "):
        sample(who, X, sampler=samplers.cfgpp, steps=3)


def test_its_table_is_no_other_samplers():
    grid = grids.logsnr(WORLD.schedule, 6)

    def plan(rule):
        return rule.plan(WORLD.schedule, grid)

    @samplers.sampler()
    def in_x0(step):
        a, b = step.a, step.b
        own = b.sigma / a.sigma * a.x + (b.alpha - a.alpha * b.sigma / a.sigma) * a.negative.x0
        return own + b.alpha * (a.x0 - a.negative.x0)

    assert plan(samplers.cfgpp) == plan(in_x0), "eps_neg is (x - alpha x0_neg)/sigma"
    assert plan(samplers.cfgpp) != plan(samplers.ddim)
    assert plan(samplers.cfgpp) != plan(samplers.cfgpp(order=2))
    assert plan(samplers.cfgpp(order=2)) != plan(samplers.dpmpp(order=2))
