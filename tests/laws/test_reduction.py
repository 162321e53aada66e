"""Law 4: what is switched off is the base, bit for bit where no extra arithmetic runs."""

import pytest
import torch

from suffuse import guide, noise, oracle, sample, schedules
from suffuse.denoise import Denoiser, call
from suffuse.nets import DiT, Label

from .worlds import SCHEDULES

X = noise((6, 1), seed=5, dtype=torch.float64)
WORLD = oracle.Mixture([0.4, 0.6], torch.tensor([[-1.0], [1.0]], dtype=torch.float64), [0.1, 0.2])


def _counted(d):
    calls = []

    def fn(x, t):
        calls.append(len(x))
        return d(x, t)

    fn.schedule = d.schedule
    return fn, calls


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_guidance_of_one_is_off_and_costs_nothing(schedule):
    pos, neg = WORLD.on(schedule).given(label=0), WORLD.on(schedule)
    negative, calls = _counted(neg)
    guided = guide(pos, negative, 1.0)
    assert torch.equal(guided(X, 0.5).x0, pos(X, 0.5).x0)
    assert calls == []


def test_guidance_outside_its_interval_is_off():
    guided = guide(WORLD.given(label=0), WORLD, 3.0, between=(0.2, 0.6))
    for t, inside in ((0.1, False), (0.2, True), (0.4, True), (0.6, True), (0.7, False)):
        assert torch.equal(guided(X, t).x0, WORLD.given(label=0)(X, t).x0) == (not inside)
    t = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.7, 0.9], dtype=torch.float64)
    same = (guided(X, t).x0 - WORLD.given(label=0)(X, t).x0).abs()[:, 0] < 1e-12
    assert same.tolist() == [True, False, False, False, True, True]


def test_guidance_is_the_line_through_two_beliefs():
    pos, neg, w = WORLD.given(label=0), WORLD, 2.5
    p, n, g = pos(X, 0.5), neg(X, 0.5), guide(pos, neg, w)(X, 0.5)
    torch.testing.assert_close(g.x0, n.x0 + w * (p.x0 - n.x0))
    torch.testing.assert_close(g.eps, n.eps + w * (p.eps - n.eps))
    rows = torch.linspace(0, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(guide(pos, neg, rows)(X, 0.5).x0, n.x0 + rows[:, None] * (p.x0 - n.x0))
    torch.testing.assert_close(guide(pos, neg, 0.0)(X, 0.5).x0, n.x0)


def _model():
    net = DiT(1, patch=2, width=32, depth=2, heads=2, conditions={"label": Label(10)})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return Denoiser(net.eval(), schedules.Linear(), "velocity")


@pytest.mark.parametrize("t", [0.4, torch.linspace(0.2, 0.8, 5)], ids=["()", "(B,)"])
def test_two_bindings_of_one_network_are_one_forward(t):
    model = _model()
    x = noise((5, 1, 8, 8), seed=0)
    batches = []
    hook = model.net.register_forward_pre_hook(lambda net, args: batches.append(len(args[0])))
    with torch.no_grad():
        both = guide(model.given(label=[1, 2, 3, 4, 5]), model, 2.0)(x, t)
        hook.remove()
        assert batches == [10]
        p, n = model.given(label=[1, 2, 3, 4, 5])(x, t), model(x, t)
        torch.testing.assert_close(both.x0, n.x0 + 2 * (p.x0 - n.x0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both.eps, n.eps + 2 * (p.eps - n.eps), rtol=1e-5, atol=1e-5)


def test_another_model_as_negative_is_autoguidance():
    strong, weak = _model(), _model()
    x = noise((3, 1, 8, 8), seed=0)
    with torch.no_grad():
        g = guide(strong.given(label=1), weak.given(label=1), 1.5)(x, 0.5)
        p, n = strong.given(label=1)(x, 0.5), weak.given(label=1)(x, 0.5)
    torch.testing.assert_close(g.x0, n.x0 + 1.5 * (p.x0 - n.x0), rtol=1e-5, atol=1e-5)


def test_a_denoiser_on_its_own_schedule_is_itself():
    model = _model()
    x = noise((3, 1, 8, 8), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(model.on(schedules.Linear())(x, 0.3).x0, model(x, 0.3).x0, rtol=1e-6, atol=1e-6)


def test_starting_from_data_at_t_one_of_a_flow_is_sampling_from_noise():
    x0 = torch.full_like(X, 0.3)
    a = sample(WORLD, X, steps=8)
    assert torch.equal(a, sample(WORLD, X, steps=8, start=(x0, 1.0)))


def test_starting_late_stays_near_the_data():
    x0 = torch.full_like(X, -1.1)
    near = (sample(WORLD, X, steps=8, start=(x0, 0.05)) - x0).abs().max()
    far = (sample(WORLD, X, steps=8, start=(x0, 0.9)) - x0).abs().max()
    assert near < 0.2 < far


def test_a_handwritten_denoiser_is_legal():
    def plain(x, t):
        return WORLD(x, t)

    plain.schedule = WORLD.schedule
    assert torch.equal(sample(plain, X, steps=5), sample(WORLD, X, steps=5))
    assert torch.equal(call(guide(plain, plain, 2.0), X, 0.5).x0, WORLD(X, 0.5).x0)
