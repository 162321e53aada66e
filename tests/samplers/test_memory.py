"""A run holds the states and predictions that later rows use, and one more."""

import gc

import pytest
import torch

import suffuse as sf
from suffuse import grids, samplers
from suffuse.samplers import walk

SHAPE = (3, 7, 11, 13)


def alive():
    """Tensors of the state's size that hold memory of their own."""
    found = (t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == SHAPE)
    return len({t.untyped_storage().data_ptr() for t in found})


def needed(plan):
    """The most values, states and predictions, that a row and the rows after it use."""
    uses = {}
    for k, row in enumerate(plan.rows):
        for term in row.terms or ():
            uses.setdefault(term, []).append(k)
    first = {term: term[1] if term[0] == "x" else ks[0] for term, ks in uses.items()}
    return max(sum(first[term] <= k <= ks[-1] for term, ks in uses.items()) for k in range(1, len(plan.rows)))


@pytest.mark.parametrize(
    "rule",
    [
        samplers.ddim,
        samplers.dpmpp(order=2),
        samplers.dpmpp(order=3),
        samplers.unipc,
        samplers.heun,
        samplers.trig_adams,
    ],
    ids=repr,
)
def test_a_run_holds_what_later_rows_use_and_one_state_more(rule, monkeypatch):
    counts, combine = [], walk.combine

    def counted(coefficients, terms):
        out = combine(coefficients, terms)
        counts.append(alive())
        return out

    monkeypatch.setattr(walk, "combine", counted)

    def net(x, t):
        counts.append(alive())
        return 0.1 * x

    model = sf.Denoiser(net, sf.schedules.VP(), predicts="eps")
    plan = rule.plan(model.schedule, grids.uniform(model.schedule, 12))
    x = sf.noise(SHAPE, seed=0)
    before = alive()
    for step in plan.run(model, x):
        counts.append(alive())
        del step
    peak = max(counts) - before
    assert peak <= needed(plan) + 1
