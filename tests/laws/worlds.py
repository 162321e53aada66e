"""What the laws sweep over: everything exported, and the exact worlds it is held against."""

import itertools

import numpy as np
import torch

from suffuse import guide, oracle, parameterize, samplers, schedules

SCHEDULES = {
    "linear": schedules.Linear(),
    "cosine": schedules.Cosine(),
    "vp": schedules.VP(),
    "ve": schedules.VE(),
    "ve-edm": schedules.VE(power=1.0),
    "ddpm": schedules.Discrete.ddpm(),
    "scaled-linear": schedules.Discrete.scaled_linear(),
    "discrete-cosine": schedules.Discrete.cosine(),
    "zero-snr": schedules.Discrete.scaled_linear().zero_terminal_snr(),
    "linear-shift-3": schedules.Linear().shift(3.0),
    "vp-shift-half": schedules.VP().shift(0.5),
}


PARAMETERIZATIONS = {  # every exported one; a function of the data's spread is taken at its default
    name: value if isinstance(value, parameterize.Parameterization) else value()
    for name, value in ((n, getattr(parameterize, n)) for n in parameterize.__all__)
    if not isinstance(value, type)
}

OPTIONS = {  # the options of every rule that the laws run with; a rule that is not here runs as it is
    "adams": [
        {"order": 1, "corrector": 2},
        {"order": 2, "corrector": 0},
        {"order": 3, "corrector": 4, "q": 1.5},
        {"order": 4, "corrector": 0},
    ],
    "cfgpp": [{"order": 1}, {"order": 2}],
    "churn": [{"amount": 20.0}, {"amount": 20.0, "scale": 1.003}],
    "ddim": [{"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0}],
    "ddpm": [{"variance": "small"}, {"variance": "large"}],
    "deis": [{"order": 1}, {"order": 2}, {"order": 3}],
    "dpm_solver": [{"order": 2}, {"order": 3}],
    "dpmpp": [{"order": p, "weights": w} for p, w in itertools.product((1, 2, 3), ("exact", "paper"))],
    "dpmpp_multistep_sde": [{"order": 1}, {"order": 2}, {"order": 2, "eta": 0.5}],
    "langevin": [{"corrections": 1}, {"corrections": 2, "ratio": 0.5}],
    "lms": [{"order": 2}, {"order": 4}],
    "noise_adams": [{"order": 2}, {"order": 4}],
    "res": [{"order": 2}, {"order": 2, "c2": 0.8}, {"order": 3}, {"order": 3, "c2": 1 / 3, "c3": 0.8}],
    "res_multistep": [{"order": 2}, {"order": 3}],
    "sa_solver": [{"order": 2}, {"order": 3, "corrector": 3, "tau": 0.5}],
    "seeds": [{"order": 1}, {"order": 2}],
    "trig_adams": [
        {"order": 1, "corrector": 0},
        {"order": 2, "corrector": 0, "spread": 0.7},
        {"order": 2, "corrector": 4, "last": 1},
        {"order": 3, "corrector": 4},
        {"order": 4, "corrector": 5, "last": 1},
    ],
    "unipc": [{"order": p, "variant": v} for p, v in ((1, "bh2"), (2, "bh1"), (2, "bh2"), (3, "bh2"))],
}

RULES = {
    repr(rule(**options)): rule(**options)
    for name, rule in samplers.rules().items()
    for options in OPTIONS.get(name, [{}])
}
DETERMINISTIC = {name: rule for name, rule in RULES.items() if not rule.stochastic}
STOCHASTIC = {name: rule for name, rule in RULES.items() if rule.stochastic}


def world_for(rule, world):
    """The world as this rule can be run on it: CFG++ wants a negative, and one that is the world makes it plain."""
    return guide(world, world, 2.0) if rule.guided else world


def mixture_1d(schedule):
    """A one-dimensional mixture; a single Gaussian would superconverge."""
    means = torch.tensor([[-1.2], [0.4], [1.5]], dtype=torch.float64)
    return oracle.Mixture(
        [0.3, 0.45, 0.25], means, torch.tensor([0.15, 0.3, 0.1], dtype=torch.float64), schedule=schedule
    )


def transported(world, x, t, s):
    """Where the exact flow takes one-dimensional x from t to s: it keeps each point's quantile."""

    def cdf(y, at):
        alpha, sigma = world.schedule(at)
        std = (alpha**2 * world.vars[:, 0] + sigma**2).sqrt()
        z = (y[:, :1] - alpha * world.flat[:, 0]) / std
        return (world.log_weights.exp() * torch.special.ndtr(z)).sum(1)

    wanted = cdf(x, t)
    low, high = torch.full_like(x, -200.0), torch.full_like(x, 200.0)
    for _ in range(70):
        middle = (low + high) / 2
        below = cdf(middle, s)[:, None] < wanted[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def moments(plan, answer):
    """Mean and variance of the last state for x0 ~ N(m, v), when x0 predicted at (x, t) is answer(t) = (a, b): a + b x.

    Every state is affine in (x_T, z), so this is exact: nothing is sampled.
    """
    draws = sorted({i for r in plan.rows for kind, i in r.terms or () if kind == "z"})
    column = {i: n + 1 for n, i in enumerate(draws)}
    const, linear = np.zeros(len(plan.rows)), np.zeros((len(plan.rows), len(draws) + 1))
    linear[0, 0] = 1
    for k, row in enumerate(plan.rows):
        for (kind, i), c in (row.terms or {}).items():
            if kind == "z":
                linear[k, column[i]] += c
                continue
            at = plan.rows[i]
            a, b = answer(at.t)
            x0_const, x0_linear = a + b * const[i], b * linear[i]
            if kind == "x":
                const[k], linear[k] = const[k] + c * const[i], linear[k] + c * linear[i]
            elif kind == "x0":
                const[k], linear[k] = const[k] + c * x0_const, linear[k] + c * x0_linear
            else:
                const[k] += c * (const[i] - at.alpha * x0_const) / at.sigma
                linear[k] += c * (linear[i] - at.alpha * x0_linear) / at.sigma
    return const[-1], linear[-1]
