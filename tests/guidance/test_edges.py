"""Times of each row, clean data, pushes of nothing, and gradients: where guidance could go wrong unseen."""

import pytest
import torch

import suffuse as sf
from suffuse import guidance

from .worlds import MODEL, NEG, POS, READER

X = sf.noise((6, 1, 8, 8), seed=3)


def test_an_interval_is_the_same_for_one_time_and_for_a_time_of_each_row():
    """Also of what rescale and CFG++ read of a prediction, and at an end that 32 bits round outwards."""
    guided = guidance.interval(guidance.guide(POS, NEG, 3.0), POS, between=(0.2, 0.8))
    inside, outside = guided(X, torch.tensor(0.8)), guided(X, torch.tensor(0.81))
    mixed = guided(X, torch.tensor([0.8, 0.81] * (len(X) // 2)))
    for told in (lambda p: p, lambda p: p.positive, lambda p: p.negative):
        torch.testing.assert_close(told(mixed).x0[::2], told(inside).x0[::2])
        torch.testing.assert_close(told(mixed).x0[1::2], told(outside).x0[1::2])
    rescaled = guidance.rescale(guided)(X, torch.tensor([0.8, 0.81] * (len(X) // 2)))
    torch.testing.assert_close(rescaled.x0[1::2], outside.x0[1::2])
    assert (inside.x0 - POS(X, 0.8).x0).abs().max() > 1e-3, "0.8 in 32 bits is beyond 0.8, and inside"
    judged = guidance.interval(guidance.classifier(POS, READER, 1), POS, between=(0.2, 0.8))
    assert judged(X, torch.full((len(X),), 0.5)).negative is None


def test_w_1_costs_nothing_at_times_of_each_row_either():
    asked = []

    def negative(x, t):
        asked.append(len(x))
        return NEG(x, t)

    negative.schedule = NEG.schedule
    t = torch.full((len(X),), 0.5)
    p = guidance.guide(POS, negative, 1.0)(X, t)
    assert torch.equal(p.x0, POS(X, t).x0) and not asked
    torch.testing.assert_close(p.negative.eps, NEG(X, t).eps)
    assert asked == [len(X)]


@pytest.mark.parametrize("t", [0.0, torch.zeros(len(X))], ids=["number", "tensor"])
def test_a_classifier_says_nothing_of_clean_data(t):
    """Where an inversion begins."""
    p, base = guidance.classifier(POS, READER, 1, 3.0)(X, t), POS(X, t)
    assert torch.equal(p.x0, base.x0) and torch.equal(p.eps, base.eps)


def test_a_push_of_nothing_has_a_gradient():
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(guidance.apg(POS, POS, 3.0, norm=1.0)(x, 0.5).x0.sum(), x)
    (plain,) = torch.autograd.grad(POS(x, 0.5).x0.sum(), x)
    torch.testing.assert_close(slope, plain)


def test_no_gradient_is_taken_of_a_reward():
    on = []

    def reward(x0):
        on.append(torch.is_grad_enabled())
        return x0.flatten(1).mean(1)

    guidance.steer(MODEL, reward, X, particles=3, steps=2, seed=0)
    assert on and not any(on)


def test_a_scale_may_be_a_tensor_of_one_number():
    for w in (torch.tensor(3.0), torch.tensor([3.0])):
        torch.testing.assert_close(guidance.guide(POS, NEG, w)(X, 0.5).x0, guidance.guide(POS, NEG, 3.0)(X, 0.5).x0)
