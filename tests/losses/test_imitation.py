"""Imitation: nothing for the base itself, the squared difference otherwise, and a base of another kind is refused."""

import copy

import pytest
import torch

import suffuse as sf
from suffuse import losses, nets

BATCH = {"x": torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), "label": torch.arange(6) % 4}


def made(schedule=None, predicts="velocity"):
    torch.manual_seed(0)
    net = nets.MLP(2, width=16, depth=1, conditions={"label": nets.Label(4)})
    for weight in net.parameters():
        torch.nn.init.normal_(weight)
    return sf.Denoiser(net, schedule or sf.schedules.Linear(), predicts=predicts)


class Above(torch.nn.Module):
    """A network that says 3 more than another."""

    def __init__(self, net):
        super().__init__()
        self.net, self.conditions, self.more = net, net.conditions, torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, *args, **told):
        return self.net(*args, **told) + self.more


def test_it_is_the_squared_difference_of_what_both_say_at_one_state_and_told_the_same():
    base = made()
    assert torch.equal(losses.imitation(copy.copy(base), BATCH, base=base), torch.zeros(6))
    model = sf.Denoiser(Above(copy.deepcopy(base.net)), base.schedule, predicts="velocity")
    loss = losses.imitation(model, BATCH, base=base)
    torch.testing.assert_close(loss, torch.full((6,), 9.0))
    loss.sum().backward()
    assert model.net.more.grad is not None and all(p.grad is None for p in base.net.parameters())


def test_a_base_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="its own schedule: it has Linear"):
        losses.imitation(made(), BATCH, base=made(sf.schedules.VP()))
    with pytest.raises(ValueError, match="its own parameterization"):
        losses.imitation(made(), BATCH, base=made(predicts="x0"))
