"""Claims about attention and the tap on it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets import MLP, Attention, DiT, Tokens, UNet, attend, sites, tapped


def nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    text = {"text": Tokens(3)}
    made = {
        "unet": UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(0, 1), conditions=text),
        "dit": DiT(1, patch=1, width=16, depth=2, conditions=text),
    }
    for net in made.values():
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return made


KINDS = pytest.mark.parametrize("kind", nets())


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    text = torch.randn(2, 5, 3)
    text[1, 3:] = torch.nan
    return torch.randn(2, 1, 10, 10), torch.rand(2), text  # 100 pixels: past the length where the paths part


@pytest.mark.parametrize("keys", [7, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_every_path_is_the_same_function(keys: int, masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 9, 8), torch.randn(2, 3, keys, 8), torch.randn(2, 3, keys, 8)
    mask = torch.rand(2, 1, 9, keys) > 0.5 if masked else None
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.allclose(attend(q, k, v, mask), fused, atol=1e-6)
    assert torch.allclose(attend(q, k, v, mask, edit=lambda p: p), fused, atol=1e-6)
    dual, _ = torch.func.jvp(lambda q: attend(q, k, v, mask), (q,), (torch.ones_like(q),))
    assert torch.allclose(dual, fused, atol=1e-6)


@KINDS
def test_a_tap_sees_probabilities_and_an_idle_one_changes_nothing(kind: str) -> None:
    net = nets()[kind]
    x, t, text = inputs()
    sums, hidden = [], []

    def look(site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        def read(probabilities: Tensor) -> Tensor:
            sums.append(probabilities.sum(-1).flatten())
            if mask is not None:
                hidden.append(probabilities.masked_select(~mask))
            return probabilities

        return attend(q, k, v, mask, edit=read)

    # In float64, where the untapped path at 100 pixels is the fused one and a random net amplifies no rounding.
    net, x, t, text = net.double(), x.double(), t.double(), text.double()
    untapped = net(x, t, text=text)
    with tapped(net, look) as found:
        seen = net(x, t, text=text)
    assert len(sums) == len(found) == len(sites(net)) > 2
    assert torch.cat(sums).sub(1).abs().max() < 1e-5
    assert len(hidden) > 0 and torch.cat(hidden).abs().max() == 0
    assert (seen - untapped).abs().max() < 1e-6 * max(1, untapped.abs().max())


@KINDS
def test_no_attention_escapes_the_tap(kind: str) -> None:
    """Silencing every site makes the tokens, which enter by attention only, inaudible."""
    net = nets()[kind]
    x, t, text = inputs()
    with tapped(net, lambda site, q, k, v, mask: torch.zeros_like(q)):
        assert torch.equal(net(x, t, text=text), net(x, t, text=text.flip(1)))
    assert not torch.equal(net(x, t, text=text), net(x, t, text=text.flip(0)))


@KINDS
def test_sites_are_named_by_their_path_and_know_their_kind(kind: str) -> None:
    net = nets()[kind]
    for site in sites(net):
        assert net.get_submodule(site.name) is site
        assert site.kind == ("cross" if "cross" in site.name else "self")
    assert {site.kind for site in sites(net)} == {"self", "cross"}


@KINDS
def test_taps_are_put_back_even_after_an_exception(kind: str) -> None:
    net = nets()[kind]
    x, t, text = inputs()
    before = net(x, t, text=text)

    def silent(site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return torch.zeros_like(q)

    def broken(site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        raise RuntimeError("broken tap")

    with tapped(net, silent):
        outer = net(x, t, text=text)
        with pytest.raises(RuntimeError, match="broken tap"), tapped(net, broken):
            net(x, t, text=text)
        assert torch.equal(net(x, t, text=text), outer)
    assert torch.equal(net(x, t, text=text), before)
    assert not torch.equal(outer, before)


def test_a_tap_with_parameters_does_not_join_the_network() -> None:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return self.scale * attend(q, k, v, mask)

    net, adapter = nets()["dit"], Adapter()
    x, t, text = inputs()
    names = list(net.state_dict())
    with tapped(net, adapter):
        net(x, t, text=text).sum().backward()
        assert list(net.state_dict()) == names
    assert adapter.scale.grad.abs() > 0
    assert list(net.state_dict()) == names


def test_a_compiled_net_hears_a_tap_that_comes_later() -> None:
    net = nets()["dit"]
    x, t, text = inputs()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    plain = compiled(x, t, text=text)
    with tapped(net, lambda site, q, k, v, mask: torch.zeros_like(q)):
        assert torch.allclose(compiled(x, t, text=text), net(x, t, text=text), atol=1e-5)
    assert torch.allclose(compiled(x, t, text=text), plain)


def test_there_is_nothing_to_tap_in_an_mlp() -> None:
    with pytest.raises(ValueError, match="MLP has no attention to tap"), tapped(MLP(2), attend):
        pass
