"""Each option of a network keeps its promise, and named sizes are those of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from suffuse import Denoiser, grids, samplers, schedules
from suffuse.nets import EDM2, DiT, Label, MMDiT, Tokens, UNet, Vector, attend, cached, tapped
from suffuse.nets.attention import SwiGLU
from suffuse.nets.edm2 import Conv, mp_cat, mp_silu, mp_sum
from tests.nets.kinds import randomise

CLASSES = {"label": Label(1000)}
TEXT = {"text": Tokens(4096), "pooled": Vector(2048)}
PUBLISHED = [  # millions of weights: each paper's own table
    *[(DiT, f"S/{p}", 33, {"out_channels": 8, "conditions": CLASSES}) for p in (2, 4, 8)],
    *[(DiT, f"B/{p}", n, {"out_channels": 8, "conditions": CLASSES}) for p, n in ((2, 130), (4, 130), (8, 131))],
    *[(DiT, f"L/{p}", n, {"out_channels": 8, "conditions": CLASSES}) for p, n in ((2, 458), (4, 458), (8, 459))],
    *[(DiT, f"XL/{p}", n, {"out_channels": 8, "conditions": CLASSES}) for p, n in ((2, 675), (4, 675), (8, 676))],
    *[
        (UNet, f"ADM-{side}", n, {"out_channels": 6, "conditions": CLASSES})
        for side, n in ((64, 296), (128, 422), (256, 554), (512, 559))
    ],
    *[
        (EDM2, name, n, {"conditions": CLASSES})
        for name, n in (("XS", 124.7), ("S", 280.2), ("M", 497.8), ("L", 777.5), ("XL", 1119.3), ("XXL", 1523.2))
    ],
    (MMDiT, "d24", 2028.3, {"conditions": TEXT}),  # of the released weights, which normalise no queries and keys
    (MMDiT, "d38", 8056.6, {"conditions": TEXT}),
]


@pytest.mark.parametrize(("kind", "name", "millions", "options"), PUBLISHED, ids=lambda v: v if type(v) is str else "")
def test_named_sizes_have_the_papers_number_of_weights(kind, name, millions, options):
    with torch.device("meta"):
        net = kind.named(name, **options)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    places = 1 if isinstance(millions, float) else 0
    assert abs(count - millions) <= (0.003 * millions if kind is MMDiT else 0.51 * 10**-places)


@pytest.mark.parametrize(("name", "giga"), [("S/2", 6.06), ("B/4", 5.56), ("L/8", 5.01), ("XL/2", 118.64)])
def test_named_dits_have_the_papers_number_of_multiply_adds(name, giga):
    with torch.device("meta"):
        net = DiT.named(name, out_channels=8, conditions=CLASSES)
        x, t, label = torch.randn(1, 4, 32, 32), torch.rand(1), torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(x, t, label=label)
    assert abs(counter.get_total_flops() / 2e9 - giga) < 0.01 * giga


def test_unknown_names_are_refused():
    for kind, name in ((DiT, "S"), (DiT, "H/2"), (UNet, "ADM-32"), (EDM2, "XXXL"), (MMDiT, "24")):
        with pytest.raises(ValueError, match=f"got {name!r}"):
            kind.named(name)


def _scores(net: DiT, side: int) -> Tensor:
    """q.k of the first block, (patches, patches), on a picture whose patches are all alike."""
    heard = []

    def listen(site, q, k, v, mask):
        heard.append((q @ k.mT)[0, 0])
        return attend(q, k, v, mask)

    with tapped(net, listen), torch.no_grad():
        net(torch.ones(1, 1, 2 * side, 2 * side), torch.rand(1))
    return heard[0]


@pytest.mark.parametrize("rope", [True, False])
def test_with_rope_attention_depends_on_relative_position_only(rope):
    net = randomise(DiT(1, width=16, depth=1, heads=2, rope=rope))
    side = 5
    scores = _scores(net, side).view(side, side, side, side)
    moved = scores[1:, 1:, 1:, 1:] - scores[:-1, :-1, :-1, :-1]
    if not rope:
        assert moved.abs().max() > 0.1 * scores.abs().max()
        return
    assert moved.abs().max() < 1e-4 * scores.abs().max()
    for axis in range(2):  # and on the relative position along each axis
        row = scores[0, 0].select(1 - axis, 0)
        assert row.std() > 1e-2 * scores.abs().max()


def test_rope_knows_left_from_right():
    net = randomise(DiT(1, width=16, depth=1, heads=2, rope=True))
    scores = _scores(net, 3).view(3, 3, 3, 3)
    assert (scores[1, 1, 1, 0] - scores[1, 1, 1, 2]).abs() > 1e-2 * scores.abs().max()


def test_qk_norm_bounds_scores_whatever_the_weights():
    plain, normed = (randomise(DiT(1, width=16, depth=1, heads=2, qk_norm=on)) for on in (False, True))
    d = 8
    for net in (plain, normed):
        if net is normed:
            net.blocks[0].self_attention.scales.data.fill_(1.0)
        with torch.no_grad():
            net.blocks[0].self_attention.qkv.weight[:32] *= 100
    assert _scores(normed, 4).abs().max() <= d * 1.001 < _scores(plain, 4).abs().max()
    with torch.no_grad():
        normed.blocks[0].self_attention.scales.mul_(2.0)
    assert d < _scores(normed, 4).abs().max() <= 4 * d * 1.001


def test_swiglu_is_linear_in_its_value_and_costs_what_the_mlp_does():
    layer = randomise(SwiGLU(12, 48))
    with torch.no_grad():
        layer.out.bias.zero_()
        x = torch.randn(5, 12)
        before = layer(x)
        hidden = layer.out.weight.shape[1]
        layer.both.weight[hidden:] *= 3
        layer.both.bias[hidden:] *= 3
        assert torch.allclose(layer(x), 3 * before, rtol=1e-4, atol=1e-5)
        layer.both.weight[:hidden] = 0
        layer.both.bias[:hidden] = -30.0
        assert layer(x).abs().max() < 1e-6 * before.abs().max()
    with torch.device("meta"):
        a, b = (sum(p.numel() for p in DiT.named("B/2", swiglu=on).parameters()) for on in (False, True))
    assert abs(a / b - 1) < 0.002


def test_registers_are_heard_by_every_patch_and_are_no_patches():
    net = randomise(DiT(1, width=16, depth=2, heads=2, registers=3))
    x, t = torch.randn(2, 1, 6, 4), torch.rand(2)
    before = net(x, t)
    assert before.shape == x.shape
    with torch.no_grad():
        net.register[1, :8] += 1
    patches = torch.nn.functional.unfold((net(x, t) - before).abs(), 2, stride=2)
    assert (patches.amax(1) > 1e-4 * before.abs().max()).all()


@pytest.mark.parametrize("skips", [True, False])
def test_skips_carry_the_first_blocks_past_the_middle(skips):
    net = randomise(DiT(1, width=16, depth=5, heads=2, skips=skips))
    net.blocks[2].register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    x, t = torch.randn(2, 1, 4, 4), torch.rand(1).expand(2)
    moved = (net(x, t)[0] - net(x, t)[1]).abs().max()
    assert moved > 1e-2 if skips else moved == 0


def test_a_dit_with_skips_is_not_cached():
    model = Denoiser(DiT(1, width=16, depth=4, heads=2, skips=True), schedules.Linear(), "velocity")
    with pytest.raises(ValueError, match="without skips"):
        samplers.ddim().plan(model.schedule, grids.uniform(model.schedule, 4))(
            cached(model, every=2), torch.randn(1, 1, 4, 4)
        )


def test_adm_halves_and_doubles_inside_residual_blocks():
    """Fresh blocks add nothing, so what is left of the way down and up is the mean of neighbours, repeated."""
    net = UNet(1, width=8, multipliers=(1, 1), blocks=1, head_width=8, resample="block").eval()
    heard = {}
    net.down[1].register_forward_hook(lambda module, args, out: heard.update(down=(args[0], out)))
    net.up[2].register_forward_hook(lambda module, args, out: heard.update(up=(args[0], out)))
    net(torch.randn(1, 1, 8, 8), torch.rand(1))
    fine, coarse = heard["down"]
    assert torch.allclose(coarse, fine.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)), atol=1e-6)
    coarse, fine = heard["up"]
    assert torch.equal(fine[..., ::2, ::2], coarse) and torch.equal(fine[..., 1::2, 1::2], coarse)


def test_adm_heads_are_of_one_width():
    with torch.device("meta"):
        net = UNet.named("ADM-64")
    found = {m.self_attention.heads for m in net.modules() if hasattr(m, "self_attention")}
    assert found == {6, 9, 12}


def test_magnitude_preserving_parts_keep_magnitude():
    torch.manual_seed(0)
    a, b = torch.randn(64, 48, 9, 9), torch.randn(64, 16, 9, 9)

    def size(x):
        return x.square().mean().sqrt().item()

    for x in (Conv(2, 48, 32, 3)(torch.nn.functional.pad(a, (1, 1, 1, 1), "circular"))[..., 1:-1, 1:-1], mp_silu(a)):
        assert abs(size(x) - 1) < 0.05
    for t in (0.3, 0.5, 0.9):
        assert abs(size(mp_sum(a, torch.randn_like(a), t)) - 1) < 0.02
    joined = mp_cat(a, b)
    assert abs(size(joined) - 1) < 0.02
    share = joined[:, :48].square().sum() / joined.square().sum()
    assert abs(share - 0.5) < 0.02  # both count alike, though one has three times the channels


def test_edm2_keeps_magnitude_from_end_to_end_however_large_its_weights_are():
    net = EDM2(3, width=32, multipliers=(1, 2), blocks=2, head_width=16, conditions={"label": Label(4)}).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.3)
        net.gain.fill_(1.0)
        x, t, label = torch.randn(8, 3, 16, 16), torch.rand(8), torch.arange(8) % 4
        seen, last, below = {}, {}, []

        def join(m, a):
            if m.flavour == "join":
                n = last["h"].shape[1]
                below.append(n / a[0].shape[1] * (a[0][:, :n].norm() / last["h"].norm()) ** 2)

        for name, module in net.named_modules():
            if type(module).__name__ == "_Block":
                module.register_forward_pre_hook(join)
                module.register_forward_hook(
                    lambda m, a, out, name=name: seen.update({name: out.square().mean().sqrt()}) or last.update(h=out)
                )
        net.told.register_forward_hook(lambda m, a, out: seen.update(told=out[1].square().mean().sqrt()))
        net.told.time.register_forward_hook(lambda m, a, out: seen.update(time=a[0].square().mean().sqrt()))
        before = net(x, t, label=label)
        assert abs(seen["time"] - 1) < 1e-3
        assert len(below) == 6 and all(abs(share - 0.5) < 1e-5 for share in below), "joined parts count alike"
        assert all(0.6 < value < 1.4 for value in seen.values()), seen
        assert 0.5 < before.square().mean().sqrt() < 1.4
        for name, p in net.named_parameters():
            if "embedders" not in name and not name.endswith("gain"):
                p.mul_(math.exp(torch.randn(()).item()))
        assert (net(x, t, label=label) - before).abs().max() < 1e-3


def test_edm2_refuses_tokens():
    with pytest.raises(ValueError, match="'text' needs UNet"):
        EDM2(3, conditions={"text": Tokens(4)})
