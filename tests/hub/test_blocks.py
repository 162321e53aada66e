"""Caching reaches into the networks of every family: the deep part is spared, the rest is as it was."""

import pytest
import torch

import suffuse as sf
from suffuse import hub, nets

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.hub.test_parity import close  # noqa: E402
from tests.hub.test_techniques import BUILD, Count, families, told  # noqa: E402, F401  (a fixture)


def cached(model, **how):
    """As a run begins it, and the cost it counts."""
    made = nets.cached(model, blocks=hub.blocks(model), **how)
    return made.fresh(), made.cost


def asked(model, x, t):
    """The answer, and how many attentions it took."""
    with torch.no_grad(), Count() as calls:
        return model(x, t).x0, calls.n


@pytest.mark.parametrize("name", BUILD)
def test_the_deep_part_is_spared_and_answers_what_it_did(families, name):  # noqa: F811
    model = told(families(name)[1])
    x, other = sf.noise((2, *model.shape), seed=0), sf.noise((2, *model.shape), seed=1)
    plain, all_of_them = asked(model, x, 0.6)
    fast, cost = cached(model, every=2)
    first, n = asked(fast, x, 0.6)
    assert torch.equal(first, plain) and n == all_of_them
    again, fewer = asked(fast, x, 0.6)
    close(again, plain, 1e-5 * plain.abs().max().item())
    assert fewer < all_of_them and cost.share == 0.5
    third, n = asked(fast, other, 0.5)
    want, _ = asked(model, other, 0.5)
    assert torch.equal(third, want) and n == all_of_them  # and the network itself is as it was
    stale, _ = asked(fast, x, 0.6)
    assert (stale - plain).abs().max() > 1e-3 and (stale - third).abs().max() > 1e-3  # half of it is from before


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_guided_run_is_spared(families, name):  # noqa: F811
    model = families(name)[1]
    guided = sf.guide(told(model), model, 3.0)
    fast = nets.cached(guided, every=3, blocks=hub.blocks(model))
    x = sf.noise((2, *model.shape), seed=0)
    out = sf.sample(fast, x, steps=6)
    assert fast.cost.share == 1 / 3
    plain = sf.sample(guided, x, steps=6)
    assert (out - plain).abs().max() > 1e-3
    close(sf.sample(nets.cached(guided, every=1, blocks=hub.blocks(model)), x, steps=6), plain)


def test_rows_of_a_transformer_and_whole_u_nets(families):  # noqa: F811
    model = told(families("sd3")[1])
    x = sf.noise((2, *model.shape), seed=0)
    fast, cost = cached(model, threshold=0.05)
    asked(fast, x, 0.6)
    moved = torch.cat([x[:1], sf.noise((1, *model.shape), seed=1)])
    got, _ = asked(fast, moved, 0.6)
    want, _ = asked(model, moved, 0.6)
    close(got, want, 1e-5 * want.abs().max().item())  # one row was kept, the other made anew
    assert cost.share == 0.75
    unet = told(families("sd")[1])
    fast, _ = cached(unet, threshold=0.05)
    asked(fast, x := sf.noise((2, *unet.shape), seed=0), 0.6)
    with pytest.raises(ValueError, match="spared whole, by every="):
        asked(fast, torch.cat([x[:1], sf.noise((1, *unet.shape), seed=1)]), 0.6)
    with pytest.raises(TypeError, match="UNet is no network that"):
        hub.blocks(sf.Denoiser(nets.UNet(1, width=8, multipliers=(1, 2), blocks=1), sf.schedules.VP(), "eps"))
