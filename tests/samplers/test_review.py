"""What a reader of the samplers found: each once wrong, or silent."""

import pytest
import torch
from torch import nn

import suffuse as sf
from suffuse import grids, oracle, samplers
from suffuse.samplers import Plan, PlanError

LINEAR = sf.schedules.Linear()


class Watched(nn.Module):
    """A network that notes the mode it was asked in."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def forward(self, x, t):
        self.modes.add(self.training)
        return 0.3 * x


def test_a_fit_asks_as_sampling_does():
    net, told = Watched().train(), set()

    def fn(x, t, to, part):
        told.add(to is not None)
        return part(x, t)

    samplers.fit(sf.denoiser(fn, [sf.Denoiser(net, LINEAR)]), 3, sf.noise((32, 2), seed=0), trials=1)
    assert net.modes == {False} and told == {True} and net.training


def test_a_fit_begins_each_solution_with_fresh_state():
    started = []

    class State:
        def __init__(self):
            started.append(0)

    def fn(x, t, to, part, state):
        started[-1] += 1
        return part(x, t)

    world = oracle.Gaussian(torch.zeros(2), 1.0, schedule=LINEAR)
    samplers.fit(sf.denoiser(fn, [world], state=State), 4, sf.noise((40, 2), seed=0), trials=0)
    assert started.count(4) >= 4, started  # the two solutions and the two judged plans at least


@pytest.mark.parametrize("predicts", ["v", "edm"])
def test_half_precision_stays_finite_where_alpha_is_tiny(predicts):
    schedule = sf.schedules.Discrete.cosine()
    model = sf.Denoiser(lambda x, t: torch.full_like(x, 4.0), schedule, predicts)
    x = sf.noise((2, 3), seed=0, dtype=torch.float16)
    for rule in (samplers.dpmpp(order=2), samplers.adams):
        assert bool(sf.sample(model, x, sampler=rule, steps=8, grid=grids.uniform).isfinite().all())


def test_a_table_without_its_rule_says_that_it_cannot_jump():
    plan = Plan.from_json(samplers.ddim.plan(LINEAR, grids.uniform(LINEAR, 3)).to_json())
    world = oracle.Gaussian(torch.zeros(2), 1.0, schedule=LINEAR)
    with pytest.raises(ValueError, match="only a table"):
        for step in sf.run(world, sf.noise((2, 2), seed=0), sampler=plan):
            step.goto(1)


def test_a_plan_that_begins_elsewhere_than_start_is_refused():
    world = oracle.Gaussian(torch.zeros(2), 1.0, schedule=LINEAR)
    noise = sf.noise((2, 2), seed=0)
    plan = samplers.ddim.plan(LINEAR, [0.5, 0.25, 0.0])
    with pytest.raises(ValueError, match=r"begins at t=0.5, start asks for t=1"):
        sf.sample(world, noise, sampler=plan, start=(noise, 1.0))
    whole = samplers.plan_for(LINEAR, sampler=samplers.ddim, grid=[0.5, 0.0], start=1.0)
    assert whole.grid == (1.0, 0.5, 0.0)
    assert sf.sample(world, noise, sampler=plan).shape == noise.shape


@pytest.mark.parametrize("rule", [samplers.dpmpp(order=2), samplers.adams, samplers.deis], ids=repr)
def test_what_cannot_walk_up_to_pure_noise_says_so(rule):
    world = oracle.Gaussian(torch.zeros(2, dtype=torch.float64), 1.0, schedule=LINEAR)
    x0 = world.sample(4, seed=0)
    with pytest.raises(ValueError, match="cannot walk up to pure noise"):
        samplers.encode(world, x0, sampler=rule, steps=6)
    with pytest.raises(ValueError, match="one step from data to pure noise"):
        samplers.encode(world, x0, steps=1)


@pytest.mark.parametrize("rows", ["adaptive", "picard"])
def test_state_of_a_run_is_refused_where_times_go_by_row(rows):
    world = oracle.Gaussian(torch.zeros(2), 1.0, schedule=LINEAR)
    held = sf.denoiser(lambda x, t, to, part, state: part(x, t), [world], state=list, name="momentum")
    around = sf.guide(held, world, w=2.0)
    with pytest.raises(ValueError, match=r"momentum\(...\) keeps something"):
        if rows == "adaptive":
            sf.sample(around, sf.noise((2, 2), seed=0), sampler=samplers.adaptive())
        else:
            sf.sample(around, sf.noise((2, 2), seed=0), sampler=samplers.picard(samplers.ddim), steps=4)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("adams", {"order": 0}),
        ("adams", {"last": 0}),
        ("adams", {"q": -1.0}),
        ("trig_adams", {"spread": 0.0}),
        ("trig_adams", {"order": 0}),
        ("noise_adams", {"q": 0.0}),
        ("deis", {"order": -1}),
        ("lms", {"order": 0}),
        ("sa_solver", {"tau": -1.0}),
    ],
)
def test_options_out_of_range_are_named(rule, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be"):
        getattr(samplers, rule)(**options).plan(LINEAR, grids.uniform(LINEAR, 4))


def test_a_coefficient_that_is_not_finite_is_an_error_whatever_the_law():
    data = samplers.trig_adams.plan(LINEAR, grids.uniform(LINEAR, 4)).to_json()
    data["rows"][2]["terms"][0][2] = float("nan")
    with pytest.raises(PlanError, match="not finite"):
        Plan.from_json(data)
