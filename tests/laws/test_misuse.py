"""Law 9: what is misused raises where the mistake is made, in one sentence with the value seen."""

import math

import pytest
import torch

from suffuse import Denoiser, grids, guide, noise, oracle, sample, samplers, schedules
from suffuse.denoise import denoiser
from suffuse.nets import DiT, Label
from suffuse.parameterize import Prediction

WORLD = oracle.Gaussian([0.0, 1.0], 0.5)
X = noise((3, 2), seed=0)


def _dit(**kind):
    return Denoiser(
        DiT(1, patch=4, width=16, depth=1, heads=2, conditions={"label": Label(10, **kind)}), schedules.Linear()
    )


IMAGE = noise((2, 1, 8, 8), seed=0)


def _no_schedule(x, t):
    return WORLD(x, t)


def _tensor(x, t):
    return x


_tensor.schedule = schedules.Linear()

CASES = {
    "unknown condition": (lambda: _dit().given(colour=3), TypeError, "unknown condition 'colour': DiT takes label"),
    "label out of range": (lambda: _dit().given(label=12), ValueError, "label must be in 0..9, got 12"),
    "label of another batch": (
        lambda: sample(_dit().given(label=[1, 2, 3]), IMAGE, steps=2),
        ValueError,
        "label was given for 3 rows, the batch has 2",
    ),
    "no null": (
        lambda: sample(guide(_dit(optional=False).given(label=1), _dit(optional=False), 2.0), IMAGE, steps=2),
        ValueError,
        "no null for 'label'",
    ),
    "oracle label": (lambda: WORLD.given(label=4), ValueError, r"label must be one of \[0\], got 4"),
    "t above 1": (lambda: WORLD(X, 1.5), ValueError, r"t must be in \[0, 1\] .*got 1.5"),
    "t below 0": (lambda: _dit()(IMAGE, -0.1), ValueError, r"t must be in \[0, 1\] .*got -0.1"),
    "t of rows out of range": (
        lambda: _dit()(IMAGE, torch.tensor([0.5, 2.0])),
        ValueError,
        r"t must be in \[0, 1\].*got 2",
    ),
    "grid rises": (lambda: sample(WORLD, X, grid=[1.0, 0.3, 0.5]), ValueError, "the grid must fall .* 0.5 follows 0.3"),
    "grid repeats": (lambda: samplers.ddim.plan(schedules.Linear(), [1.0, 0.3, 0.3]), ValueError, "0.3 follows 0.3"),
    "grid of one": (lambda: sample(WORLD, X, grid=[1.0]), ValueError, "at least two times"),
    "no steps": (lambda: sample(WORLD, X, steps=0), ValueError, "steps must be a whole number of at least 1, got 0"),
    "half a step": (lambda: sample(WORLD, X, steps=2.5), ValueError, "whole number of at least 1, got 2.5"),
    "no budget": (lambda: sample(WORLD, X), ValueError, "say how long: steps=20"),
    "two budgets": (lambda: sample(WORLD, X, steps=3, nfe=3), ValueError, "one of the two"),
    "a plan and steps": (
        lambda: sample(WORLD, X, sampler=samplers.ddim.plan(WORLD.schedule, [1.0, 0.0]), steps=3),
        ValueError,
        "a Plan has its own grid",
    ),
    "unknown option": (lambda: samplers.ddim(etta=1.0), TypeError, "ddim does not take 'etta': it takes eta"),
    "order 4": (
        lambda: sample(WORLD, X, sampler=samplers.dpmpp(order=4), steps=4),
        ValueError,
        "order 1, 2 or 3, got 4",
    ),
    "cfgpp of order 3": (
        lambda: sample(guide(WORLD, WORLD, 0.5), X, sampler=samplers.cfgpp(order=3), steps=4),
        ValueError,
        "cfgpp has order 1 or 2, got 3",
    ),
    "res of order 1": (
        lambda: samplers.res(order=1).plan(WORLD.schedule, [0.9, 0.5]),
        ValueError,
        "order 2 or 3, got 1; order 1 is ddim",
    ),
    "res past the step": (
        lambda: samplers.res(c2=1.5).plan(WORLD.schedule, [0.9, 0.5]),
        ValueError,
        r"in \(0, 1\], got 1.5",
    ),
    "res where no weights exist": (
        lambda: samplers.res(order=3, c2=2 / 3).plan(WORLD.schedule, [0.9, 0.5]),
        ValueError,
        "neither 2/3 nor c3, got c2=0.666667",
    ),
    "res_multistep of order 4": (
        lambda: samplers.res_multistep(order=4).plan(WORLD.schedule, [0.9, 0.5]),
        ValueError,
        "order 1, 2 or 3, got 4",
    ),
    "no seed": (lambda: sample(WORLD, X, sampler=samplers.ddpm, steps=4), ValueError, "draws noise: give it a seed"),
    "negative seed": (lambda: noise((2, 2), seed=-1), ValueError, "seed must be an integer in 0.*got -1"),
    "float seed": (lambda: noise((2, 2), seed=0.5), ValueError, "got 0.5"),
    "no schedule": (lambda: sample(_no_schedule, X, steps=2), TypeError, "needs a .schedule, function has none"),
    "a tensor for a prediction": (
        lambda: sample(_tensor, X, steps=2),
        TypeError,
        "must return a Prediction, got Tensor",
    ),
    "another schedule": (
        lambda: samplers.ddim.plan(schedules.Cosine(), [1.0, 0.0])(WORLD, X),
        ValueError,
        r"the plan is for Cosine\(\), the denoiser lives on Linear\(\)",
    ),
    "w is not a number": (lambda: guide(WORLD, WORLD, math.nan), ValueError, "w must be a finite number, got nan"),
    "interval turned round": (
        lambda: guide(WORLD, WORLD, 2.0, between=(0.8, 0.2)),
        ValueError,
        "0 <= low <= high <= 1",
    ),
    "two schedules": (lambda: guide(WORLD, WORLD.on(schedules.Cosine()), 2.0), ValueError, "different schedules"),
    "too noisy a schedule": (
        lambda: Denoiser(lambda x, t: x, schedules.VP()).on(schedules.Linear()),
        ValueError,
        "noisier than VP.* ever is",
    ),
    "an image that does not fit": (
        lambda: sample(_dit(), noise((2, 1, 10, 10), seed=0), steps=2),
        ValueError,
        r"\(8, 8\) or \(12, 12\)",
    ),
    "wrong channels": (
        lambda: sample(_dit(), noise((2, 3, 8, 8), seed=0), steps=2),
        ValueError,
        r"takes x of shape \(B, 1, H, W\), got \(2, 3, 8, 8\)",
    ),
    "oracle of another shape": (
        lambda: WORLD(noise((2, 3), seed=0), 0.5),
        ValueError,
        r"have shape \(2,\), got rows of \(3,\)",
    ),
    "schedule is a class": (lambda: Denoiser(lambda x, t: x, schedules.Linear), TypeError, "must be a Schedule"),
    "unknown parameterization": (
        lambda: Denoiser(lambda x, t: x, schedules.Linear(), "noise"),
        ValueError,
        "unknown parameterization 'noise': one of eps",
    ),
    "beta of 2": (lambda: schedules.Discrete((0.1, 2.0)), ValueError, r"betas must be numbers in \(0, 1\), got 2"),
    "shift of 0": (lambda: schedules.Linear().shift(0), ValueError, "shift must be a positive number, got 0"),
    "discrete spacing": (lambda: grids.leading(schedules.Linear(), 5), TypeError, "of a Discrete schedule"),
    "too many discrete steps": (
        lambda: grids.trailing(schedules.Discrete.ddpm(10), 11),
        ValueError,
        r"in 1..10, got 11",
    ),
    "integer noise": (
        lambda: sample(WORLD, torch.zeros(2, 2, dtype=torch.int64), steps=2),
        TypeError,
        "floating point",
    ),
    "start of another shape": (lambda: sample(WORLD, X, steps=2, start=(X[:1], 0.5)), ValueError, "start has shape"),
    "start at 0": (lambda: sample(WORLD, X, steps=2, start=(X, 0.0)), ValueError, r"a time in \(0, 1\], got 0"),
    "no parts": (lambda: denoiser(lambda x, t, to: x, parts=[]), ValueError, "at least one part"),
    "an empty prediction": (lambda: Prediction(X, 0.5, 0.5), ValueError, "needs x0 or eps"),
    "negative weight": (
        lambda: oracle.Mixture([1.0, -1.0], [[0.0], [1.0]], 0.1),
        ValueError,
        "weights must be 2 numbers",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_misuse(name):
    act, kind, message = CASES[name]
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300, "one sentence"
