"""LoRA and DoRA on any network: silent at first, faithful when merged, and all that is trained."""

import pytest
import torch
from torch import nn

import suffuse as sf
from suffuse import adapters
from suffuse.adapters.low_rank import stack
from suffuse.recipes import shapes
from tests.adapters.nets import MAKE, adapted, model, said, same, shaken, spread, weights, x_of

KINDS = list(MAKE)
DORA = [False, True]


@pytest.mark.parametrize("dora", DORA)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_one_is_the_base_and_a_detached_one_again(kind, dora):
    base = model(kind)
    x, before = x_of(base), weights(base.net)
    plain = said(base, x)
    fresh = adapters.lora(base, r"conv|body|up|mid|attention|qkv", dora=dora)
    assert torch.equal(said(fresh, x), plain)
    moved = shaken(fresh)
    assert (said(moved, x) - plain).abs().max() > 1e-2
    assert torch.equal(said(adapters.scaled(moved, 0.0), x), plain)
    assert torch.equal(said(adapters.detached(moved), x), plain)
    assert torch.equal(said(base, x), plain) and same(weights(base.net), before)


@pytest.mark.parametrize("dora", DORA)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_says_the_same_and_unmerged_comes_back(kind, dora):
    base = model(kind)
    moved, x = adapted(base, dora=dora, rank=2), x_of(base)
    before, says = weights(base.net), said(moved, x)
    merged = adapters.merged(moved)
    size = says.abs().max()
    assert (said(merged, x) - says).abs().max() <= 1e-6 * max(size, 1)
    back = adapters.unmerged(merged)
    assert (said(back, x) - says).abs().max() <= 1e-6 * max(size, 1)
    off = adapters.scaled(back, 0.0)
    assert (said(off, x) - said(base, x)).abs().max() <= 1e-6 * max(size, 1)
    assert torch.equal(said(moved, x), says) and same(weights(base.net), before)


@pytest.mark.parametrize("kind", ["unet", "dit", "chain"])
def test_a_baked_one_is_a_plain_network_with_the_change_in_its_weights(kind, tmp_path):
    base = model(kind)
    moved, x = adapted(base), x_of(base)
    plain = adapters.baked(moved)
    assert [type(m) for m in plain.net.modules()] == [type(m) for m in base.net.modules()]
    torch.testing.assert_close(said(plain, x), said(moved, x), rtol=0, atol=2e-5)
    if kind != "chain":
        sf.save(plain, tmp_path / "model")
        again = sf.load(tmp_path / "model").given(text=["a red square", "blue ring"])
        assert torch.equal(said(again, x), said(plain, x))


def test_two_add_up_in_any_order_and_go_one_at_a_time():
    base = model("dit")
    x = x_of(base)
    first = shaken(adapters.lora(base, name="a", rank=2), seed=1)
    both = shaken(adapters.lora(first, name="b", rank=3), seed=2)
    other = shaken(adapters.lora(shaken(adapters.lora(base, name="b", rank=3), seed=2), name="a", rank=2), seed=1)
    torch.testing.assert_close(said(both, x), said(other, x), rtol=0, atol=2e-6)
    assert torch.equal(said(adapters.detached(both, "b"), x), said(first, x))
    assert torch.equal(said(adapters.scaled(both, 0.0, "b"), x), said(first, x))
    torch.testing.assert_close(said(adapters.merged(both), x), said(both, x), rtol=0, atol=5e-6)
    assert {low.name for low in stack(both.net)} == {"a", "b"}


def test_it_learns_a_change_of_its_rank_exactly():
    """The target is the base plus a matrix of rank one, which is all that a LoRA of rank one can become."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5, bias=False))
    change = torch.randn(5, 1) @ torch.randn(1, 6)
    net = adapters.lora(base, "0", rank=1, alpha=2.0)
    x = torch.randn(256, 6)
    data = {"x": x, "y": x @ (base[0].weight + change).detach().mT}
    before = weights(base)

    def loss(_, batch):
        return (net(batch["x"]) - batch["y"]).square().mean(1)

    sf.fit(loss, data, adapters.Learned(net), steps=600, batch_size=64, lr=3e-2, ema=None, progress=False)
    (low,) = stack(net)
    torch.testing.assert_close(low.delta, change, rtol=0, atol=2e-2)
    assert same(weights(base), before)


@pytest.mark.parametrize("kind", ["dit", "chain"])
def test_rows_of_a_dora_have_the_learned_norms(kind):
    moved = adapted(model(kind), dora=True)
    found = stack(moved.net)
    baked = adapters.baked(moved).net
    names = {name: m for name, m in moved.net.named_modules() if m in found}
    for name, low in names.items():
        norms = baked.get_submodule(name).weight.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, low.magnitude.abs(), rtol=1e-4, atol=1e-5)


def test_one_alone_is_that_one_in_a_batch_and_strength_is_linear_in_the_layer():
    moved = adapted(model("unet"))
    x = x_of(moved)
    torch.testing.assert_close(said(moved.rows(slice(1, 2)), x[1:]), said(moved, x)[1:], rtol=0, atol=1e-5)
    net = shaken(adapters.lora(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")), "0", rank=2))
    y = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        off, half, on = (adapters.scaled(net, s)(y) for s in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half - off, (on - off) / 2)
    with torch.no_grad():
        torch.testing.assert_close(adapters.merged(net)(y), on)
    assert (on - off).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_what_is_trained_is_a_small_share_of_the_shapes_models(kind):
    assert 0 < adapters.share(adapters.lora(shapes.build(kind), rank=4)) < 0.02


def test_training_leaves_the_base_alone_and_resumes_bit_for_bit(tmp_path):
    base = model("dit").given(text=None)
    before = weights(base.net)
    data = {"x": sf.noise((16, 3, 8, 8), seed=1).clamp(-1, 1)}

    def run(out, steps):
        moved = adapters.lora(base, rank=2)
        learned = adapters.Learned(moved)
        stopped = []

        def loss(_, batch):
            stopped.append(0)
            if len(stopped) > steps:
                raise KeyboardInterrupt
            return sf.losses.denoising(moved, batch)

        try:
            done = sf.fit(
                loss, data, learned, steps=6, batch_size=4, lr=1e-2, ema=0.9, seed=1, out=out, resume=True,
                checkpoint_every=0.0, progress=False,
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        done.ema.into(moved)
        return said(moved, x_of(base))

    whole = run(tmp_path / "whole", 6)
    assert run(tmp_path / "parts", 3) is None
    again = run(tmp_path / "parts", 6)
    assert torch.equal(whole, again) and (whole - said(base, x_of(base))).abs().max() > 1e-3
    assert same(weights(base.net), before)
    kept = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1] / "model.safetensors"
    assert kept.stat().st_size < 0.25 * sum(p.numel() * 4 for p in base.net.parameters())


def test_what_does_not_fit_is_said():
    base = model("dit")
    with pytest.raises(ValueError, match=r"'nowhere' matches no module of DiT; it has told\.time\.first, .* in all"):
        adapters.lora(base, "nowhere")
    with pytest.raises(ValueError, match=r"where is no regular expression: '\(qkv', missing \)"):
        adapters.lora(base, "(qkv")
    for rank in (0, 2.5, "4"):
        with pytest.raises(ValueError, match=f"rank must be a whole number of at least 1 and alpha finite, got {rank}"):
            adapters.lora(base, rank=rank)
    once = adapters.lora(base)
    with pytest.raises(ValueError, match="has an adapter 'lora' already"):
        adapters.lora(once)
    with pytest.raises(ValueError, match="DoRA needs the layer itself"):
        adapters.lora(once, dora=True, name="b")
    with pytest.raises(ValueError, match="has no adapter 'b': it has lora"):
        adapters.scaled(once, 1.0, "b")
    with pytest.raises(ValueError, match="has no adapter: it has none"):
        adapters.merged(base)
    with pytest.raises(ValueError, match="unmerge it before it is scaled"):
        adapters.scaled(adapters.merged(once), 0.5)
    with pytest.raises(ValueError, match="strength must be a finite"):
        adapters.scaled(once, float("nan"))
    with pytest.raises(TypeError, match="before it is guided"):
        adapters.lora(sf.guide(base, base, 2.0))
    with pytest.raises(ValueError, match="nothing in this DiT is trained"):
        adapters.Learned(adapters.detached(once))
    with pytest.raises(ValueError, match="a convolution in 2 groups"):
        adapters.lora(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), "0")
    layer = nn.TransformerEncoderLayer(8, 2)
    with pytest.raises(ValueError, match=r"matches no module of TransformerEncoderLayer; it has linear1, linear2"):
        adapters.lora(layer, "attn")  # torch's attention reads its weights without calling the layers


def test_a_function_chooses_layers_too():
    net = adapters.lora(spread(MAKE["chain"]()), lambda name, layer: layer.out_channels == 8)
    assert [name for name, m in net.named_modules() if isinstance(m, adapters.LoRA)] == ["body.0", "body.2"]
