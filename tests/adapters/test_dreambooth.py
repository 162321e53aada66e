"""DreamBooth: the loss is the two parts it says it is, and the base stays as it was."""

import pytest
import torch

import suffuse as sf
from suffuse import adapters
from tests.adapters.nets import model, said, same, weights, x_of


def plain(model, batch):
    return batch["x"].flatten(1).mean(1) * model


def test_prior_preservation_adds_the_class_and_needs_its_pictures():
    batch = {"x": torch.ones(3, 1, 2, 2), "prior_x": torch.full((3, 1, 2, 2), 5.0)}
    loss = adapters.prior_preserving(plain, 0.5)
    assert torch.equal(loss(2.0, batch), torch.full((3,), 2.0 * (1 + 0.5 * 5)))
    assert torch.equal(adapters.prior_preserving(plain, 0.0)(2.0, {"x": batch["x"]}), torch.full((3,), 2.0))
    other = adapters.prior_preserving(plain, 0.5, lambda model, batch: plain(model, batch) + 1)
    assert torch.equal(other(2.0, batch), torch.full((3,), 2.0 * (1 + 0.5 * 5) + 0.5)), (
        "the class has a loss of its own"
    )
    with pytest.raises(ValueError, match="needs prior_x in the batch, which has x"):
        loss(2.0, {"x": batch["x"]})
    with pytest.raises(ValueError, match="weight must be"):
        adapters.prior_preserving(plain, -1.0)


def test_the_class_pulls_back_what_the_subject_pulls_away():
    """One scalar learned: subject wants 1, class wants 0, equal weights settle half way."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(net.weight)

    def loss(net, batch):
        return (net(batch["x"]) - batch["y"]).square()[:, 0]

    one = torch.ones(4, 1)
    data = {"x": one, "y": one, "prior_x": one, "prior_y": 0 * one}
    for weight, wanted in ((0.0, 1.0), (1.0, 0.5), (3.0, 0.25)):
        torch.nn.init.zeros_(net.weight)
        sf.fit(
            adapters.prior_preserving(loss, weight), data, net, steps=200, batch_size=4, lr=3e-2, ema=None,
            progress=False,
        )  # fmt: skip
        assert net.weight.item() == pytest.approx(wanted, abs=0.02)


def test_weights_of_its_own_are_all_trained_and_the_base_is_not():
    base = model("dit")
    before, x = weights(base.net), x_of(base)
    mine = adapters.own(base)
    assert torch.equal(said(mine, x), said(base, x)) and adapters.share(mine) == 1
    with torch.no_grad():
        for weight in mine.net.parameters():
            weight += 0.1
    assert same(weights(base.net), before) and not torch.equal(said(mine, x), said(base, x))
