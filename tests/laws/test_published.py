"""Anchors to other people's numbers: schedules, parameterizations and steps as diffusers has them."""

import pytest
import torch

from suffuse import Denoiser, grids, noise, samplers, schedules

diffusers = pytest.importorskip("diffusers")

TABLES = {
    "ddpm": (schedules.Discrete.ddpm(), {"beta_schedule": "linear"}),
    "scaled_linear": (
        schedules.Discrete.scaled_linear(),
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (schedules.Discrete.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_betas_are_the_published_ones(name):
    schedule, settings = TABLES[name]
    theirs = diffusers.DDIMScheduler(**settings).alphas_cumprod.double()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule(t)[0] ** 2, theirs, rtol=2e-4, atol=1e-7)


def test_zero_terminal_snr_is_the_published_rescaling():
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    schedule = schedules.Discrete.scaled_linear().zero_terminal_snr()
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule(t)[0] ** 2, theirs, rtol=2e-3, atol=1e-6)
    assert schedule(1.0) == (0.0, 1.0)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [7, 20, 50])
def test_spacings_are_the_published_ones(spacing, steps):
    theirs = diffusers.DPMSolverMultistepScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    schedule = schedules.Discrete.ddpm()
    if spacing == "trailing":
        mine = grids.trailing(schedule, steps)
        assert ((mine[:-1] * 1000).round().long() - 1).tolist() == theirs.timesteps.tolist()
    elif spacing == "linspace":
        ddim = diffusers.DDIMScheduler(timestep_spacing="linspace")
        ddim.set_timesteps(steps)
        assert ((grids.linspace(schedule, steps)[:-1] * 1000).round().long() - 1).tolist() == ddim.timesteps.tolist()
    else:
        ddim = diffusers.DDIMScheduler(timestep_spacing="leading")
        ddim.set_timesteps(steps)
        assert ((grids.leading(schedule, steps)[:-1] * 1000).round().long() - 1).tolist() == ddim.timesteps.tolist()


def _network(x, t):
    """Any smooth function of x and the discrete index, the same for both libraries."""
    index = t * 1000 - 1
    return (0.6 * x + (x * 1.7 + index.reshape(-1, 1, 1, 1) / 300).sin() * 0.5).float()


def _theirs(scheduler, x, steps, **options):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        output = _network(x, (torch.full((len(x),), float(t)) + 1) / 1000)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_ddim_on_leading_times_is_theirs(predicts):
    schedule, settings = TABLES["scaled_linear"]
    kind = {"eps": "epsilon", "v": "v_prediction"}[predicts]
    theirs = diffusers.DDIMScheduler(
        **settings, prediction_type=kind, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    x = noise((2, 4, 8, 8), seed=0)
    plan = samplers.ddim.plan(schedule, grids.leading(schedule, 20, offset=1, end=1 / 1000))
    mine = plan(Denoiser(_network, schedule, predicts), x)
    torch.testing.assert_close(mine, _theirs(theirs, x, 20), rtol=0, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpmpp_with_the_papers_weights_is_theirs(order):
    schedule, settings = TABLES["scaled_linear"]
    theirs = diffusers.DPMSolverMultistepScheduler(
        **settings, solver_order=order, timestep_spacing="leading", steps_offset=1, lower_order_final=False
    )
    x = noise((2, 4, 8, 8), seed=0)
    theirs.set_timesteps(20)
    times = [(int(i) + 1) / 1000 for i in theirs.timesteps]  # their own spacing divides T by n + 1
    plan = samplers.dpmpp(order=order, weights="paper").plan(schedule, [*times, 0.0])
    mine = plan(Denoiser(_network, schedule, "eps"), x)
    torch.testing.assert_close(mine, _theirs(theirs, x, 20), rtol=0, atol=1e-4)


def test_flow_euler_is_theirs_on_their_own_times():
    """Their sigma is our t; the shift is applied once, by us."""
    schedule = schedules.Linear()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(10)
    times = theirs.sigmas.double()
    plan = samplers.ddim.plan(schedule, times)
    x = noise((2, 4, 8, 8), seed=0)
    mine = plan(Denoiser(_network, schedule, "velocity"), x)
    y = x
    for t in theirs.timesteps:
        y = theirs.step(_network(y, torch.full((2,), float(t) / 1000)), t, y).prev_sample
    torch.testing.assert_close(mine, y, rtol=0, atol=1e-4)
