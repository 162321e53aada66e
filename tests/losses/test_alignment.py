"""Alignment to a fixed network: exact where the hidden state is what that network sees."""

from functools import partial

import pytest
import torch
from torch import nn

from suffuse import losses
from suffuse.denoise import Denoiser
from suffuse.losses import Alignment
from suffuse.nets import DiT
from suffuse.schedules import Linear
from suffuse.training import fit


class Net(nn.Module):
    """Its module "inner" passes on what it gets, so that h is x."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.inner, self.outer, self.sign = nn.Identity(), nn.Conv2d(3, 3, 1), sign

    def forward(self, x, t):
        return self.outer(self.inner(self.sign * x))


def clean(n, device):
    """Times so early that x is x0."""
    return torch.full((n,), 1e-6, device=device)


def aligned(scale=0.5, sees=lambda x: x, **more):
    plain = partial(losses.denoising, times=clean)
    made = Alignment(plain, sees, "inner", 3, 3, scale=scale, **more)
    made.likeness.head = nn.Identity()
    return plain, made


@pytest.mark.parametrize(("sign", "cosine"), [(1.0, 1.0), (-1.0, -1.0)])
def test_the_part_it_adds_is_the_cosine_of_each_cell(sign, cosine):
    batch = {"x": torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))}
    model = Denoiser(Net(sign), Linear(), predicts="velocity")
    plain, made = aligned()
    torch.manual_seed(1)
    without = plain(model, batch)
    torch.manual_seed(1)
    torch.testing.assert_close(made(model, batch), without - 0.5 * cosine, rtol=1e-4, atol=1e-4)
    turned = aligned(sees=lambda x: x.roll(1, 1) - (x * x.roll(1, 1)).sum(1, True) / (x * x).sum(1, True) * x)[1]
    torch.manual_seed(1)
    torch.testing.assert_close(turned(model, batch), without, rtol=1e-4, atol=1e-4)


def test_a_model_of_latents_is_aligned_to_what_is_seen_in_their_pictures():
    latents = {"x": torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))}
    model = Denoiser(Net(), Linear(), predicts="velocity")
    plain, made = aligned(sees=lambda pictures: pictures[:, :3])
    torch.manual_seed(1)
    without = plain(model, latents)
    torch.manual_seed(1)
    of = torch.cat([-latents["x"], latents["x"]], 1)
    torch.testing.assert_close(made(model, latents, of=of), without + 0.5, rtol=1e-4, atol=1e-4)


def test_it_trains_its_head_leaves_the_judge_alone_and_no_hook_behind():
    torch.manual_seed(0)
    seen = nn.Conv2d(3, 5, 2, stride=2)
    before = seen.weight.detach().clone()
    net = DiT(3, 2, 16, 2, 2)
    made = Alignment(losses.denoising, seen, "blocks.0", 16, 5)
    assert len(list(made.parameters())) == 4 and all("_sees" not in name for name in made.state_dict())
    model = Denoiser(net, Linear(), predicts="velocity")
    data = {"x": torch.rand(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    low = made.likeness(_hidden(model, data["x"]), data["x"]).mean()
    fit(made, data, model, steps=60, batch_size=16, lr=3e-3, progress=False)
    high = made.likeness(_hidden(model, data["x"]), data["x"]).mean()
    assert high > low + 0.4
    assert torch.equal(seen.weight, before) and seen.weight.grad is None
    assert not net.blocks[0]._forward_hooks


def _hidden(model, x):
    found = []
    handle = model.net.blocks[0].register_forward_hook(lambda _m, _x, h: found.append(h.detach()))
    model(x, torch.full((len(x),), 0.1))
    handle.remove()
    return found[0]


def test_what_does_not_fit_is_refused():
    model, batch = Denoiser(Net(), Linear(), predicts="velocity"), {"x": torch.randn(2, 3, 4, 4)}
    with pytest.raises(ValueError, match=r"the network Net has no module 'blocks\.2' to align"):
        Alignment(losses.denoising, lambda x: x, "blocks.2", 3, 3)(model, batch)
    with pytest.raises(ValueError, match="the hidden state has 16 cells and the features have 4; they must match"):
        aligned(sees=lambda x: x[..., ::2, ::2])[1](model, batch)
    with pytest.raises(ValueError, match="inner of Net must be called once by the loss, was 2 times"):
        Alignment(lambda m, b: losses.denoising(m, b) + losses.denoising(m, b), lambda x: x, "inner", 3, 3)(
            model, batch
        )
