"""No step waits for the device: tensors without values, of which nothing can be read back, go through every sampler."""

import pytest
import torch

import suffuse as sf
from suffuse import grids
from tests.laws.worlds import RULES

SHAPE = (2, 3, 8, 8)


def meta_run(rule, net=lambda x, t: 0.1 * x):
    model = sf.guide(sf.Denoiser(net, sf.schedules.VP(), "v"), sf.Denoiser(net, sf.schedules.VP(), "v"), w=2.0)
    plan = rule.plan(model.schedule, grids.uniform(model.schedule, 6))
    path = sf.BrownianPath(SHAPE, 0, device="meta")
    return plan(model, torch.empty(SHAPE, device="meta"), path)


@pytest.mark.parametrize("name", RULES)
def test_a_run_reads_nothing_back_from_the_device(name):
    assert meta_run(RULES[name]).shape == SHAPE


def test_a_run_that_reads_something_back_would_be_seen():
    def asks(x, t):
        return 0.1 * x if x.sum() > 0 else x

    with pytest.raises(RuntimeError, match=r"item\(\)|meta"):
        meta_run(RULES["ddim(eta=0.0)"], asks)
