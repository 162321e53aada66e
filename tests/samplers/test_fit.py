"""Fitted plans, plans in files, and the default sampler's claim to be the most accurate."""

import json

import pytest
import torch

import suffuse as sf
from suffuse import grids, oracle, samplers
from suffuse.samplers import Plan, PlanError


def world(schedule, std=0.4):
    means = sf.noise((6, 3), seed=5, dtype=torch.float64)
    return oracle.Mixture(torch.ones(6), means, std**2, schedule=schedule)


def error(model, plan, noise, exact):
    return (sf.sample(model, noise, sampler=plan) - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("schedule", [sf.schedules.Linear(), sf.schedules.Discrete.ddpm()], ids=str)
def test_the_default_is_closer_to_the_flow_than_what_others_default_to(schedule):
    model, noise = world(schedule), sf.noise((512, 3), seed=1, dtype=torch.float64)
    exact = sf.sample(model, noise, nfe=400)
    for nfe in (5, 10, 20):
        mine = error(model, samplers.plan_for(schedule, nfe=nfe), noise, exact)
        for rule in (samplers.ddim, samplers.dpmpp(order=2), samplers.unipc(order=2), samplers.heun):
            for grid in (grids.logsnr, grids.uniform):
                rival = samplers.plan_for(schedule, sampler=rule, nfe=nfe, grid=grid)
                assert mine < 0.8 * error(model, rival, noise, exact), (nfe, rule, grid)


def test_the_default_looks_at_higher_noise_for_larger_data_points():
    """In 256 dimensions it is decided early which of far components a sample goes to."""
    schedule = sf.schedules.Linear()
    means = sf.noise((8, 1, 16, 16), seed=6, dtype=torch.float64)
    model = oracle.Mixture(torch.ones(8), means, 0.6**2, schedule=schedule)
    noise = sf.noise((192, 1, 16, 16), seed=1, dtype=torch.float64)
    exact = sf.sample(model, noise, nfe=100)
    for nfe in (8, 20):
        small, own = (samplers.plan_for(schedule, nfe=nfe, size=size) for size in (1, 256))
        assert error(model, own, noise, exact) < 0.85 * error(model, small, noise, exact), nfe
        assert torch.equal(sf.sample(model, noise, nfe=nfe), sf.sample(model, noise, sampler=own))


def test_a_fit_is_closer_on_noise_it_never_saw():
    schedule = sf.schedules.Linear()
    model = world(schedule, std=0.15)
    plan = samplers.fit(model, 6, sf.noise((512, 3), seed=2, dtype=torch.float64), trials=40)
    assert plan.nfe == 6
    noise = sf.noise((1024, 3), seed=3, dtype=torch.float64)
    exact = sf.sample(model, noise, nfe=400)
    assert error(model, plan, noise, exact) < 0.9 * error(model, samplers.plan_for(schedule, nfe=6), noise, exact)


def test_a_fit_is_never_worse_on_the_pilots_held_back_than_its_start():
    schedule = sf.schedules.Cosine()
    model, pilot = world(schedule), sf.noise((40, 3), seed=4, dtype=torch.float64)
    exact = sf.sample(model, pilot, nfe=200)
    wild = exact.clone()
    wild[:30] += sf.noise((30, 3), seed=9, dtype=torch.float64)  # what the fit sees is nonsense
    plan = samplers.fit(model, 8, pilot, reference=wild, trials=20)
    start = samplers.plan_for(schedule, nfe=8)
    assert error(model, plan, pilot[30:], exact[30:]) <= error(model, start, pilot[30:], exact[30:])


def test_a_fit_says_what_it_needs():
    model = world(sf.schedules.Linear())
    with pytest.raises(ValueError, match="at least 32, got 8"):
        samplers.fit(model, 5, sf.noise((8, 3), seed=0))
    with pytest.raises(ValueError, match="held_back"):
        samplers.fit(model, 5, sf.noise((64, 3), seed=0), held_back=1.0)


@pytest.mark.parametrize("schedule", [sf.schedules.VP(), sf.schedules.Discrete.scaled_linear().shift(2.0)], ids=str)
@pytest.mark.parametrize(
    "rule", [samplers.trig_adams, samplers.ddpm(variance="large"), samplers.dpmpp_sde, samplers.edict], ids=repr
)
def test_a_plan_comes_back_from_its_file_to_the_bit(rule, schedule, tmp_path):
    plan = rule.plan(schedule, grids.uniform(schedule, 6))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert repr(again) == repr(plan)
    model, noise = world(schedule), sf.noise((4, 3), seed=0, dtype=torch.float64)
    assert torch.equal(sf.sample(model, noise, sampler=plan, seed=1), sf.sample(model, noise, sampler=again, seed=1))
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_was_changed_by_hand_is_found_out():
    schedule = sf.schedules.Linear()
    data = json.loads(json.dumps(samplers.ddim.plan(schedule, grids.uniform(schedule, 4)).to_json()))
    data["rows"][2]["terms"][0][2] *= 1.01
    with pytest.raises(PlanError, match="row 2"):
        Plan.from_json(data)
    with pytest.raises(ValueError, match="a plan has the keys"):
        Plan.from_json({k: v for k, v in data.items() if k != "rows"})
