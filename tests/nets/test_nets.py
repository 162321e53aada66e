"""Claims about the networks themselves: MLP, UNet, DiT and MMDiT, in every number of dimensions they take."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from suffuse.nets import DiT, UNet, tapped
from tests.nets.kinds import BUILD, EVERY, SPECS, batch, doubled, randomise, specs_for


@EVERY
def test_a_fresh_net_says_exactly_zero_and_yet_learns(kind: str) -> None:
    net = BUILD[kind](conditions=specs_for(kind))
    x, t, told = batch(kind)
    out = net(x, t, **told)
    assert torch.equal(out, torch.zeros_like(x))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (net(x, t, **told) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            last = net.gain if kind == "edm2" else net.out.weight
            assert last.grad.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@EVERY
def test_after_a_few_steps_every_parameter_is_trained(kind: str) -> None:
    net = BUILD[kind](conditions=specs_for(kind))
    x, t, told = batch(kind)
    x, t = torch.cat([x, x]), torch.cat([t, t])
    told = {name: torch.cat([value, spec_null(name, value, x[:3])]) for name, value in told.items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (net(x, t, **told) - x).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        moved = parameter.grad.abs() > 0
        # Every shift, scale and gate must be used: one row of the weight each.
        assert moved.any(1).all() if name.endswith("modulation.weight") else moved.any(), name


def spec_null(name: str, value: Tensor, x: Tensor) -> Tensor:
    return SPECS[name].null(name, x).expand(value.shape)


@EVERY
def test_a_row_does_not_depend_on_its_batch_mates(kind: str) -> None:
    net = randomise(BUILD[kind](conditions=specs_for(kind)))
    x, t, told = batch(kind)
    together = net(x, t, **told)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], **{k: v[i : i + 1] for k, v in told.items()}) for i in range(3)])
    assert (together - alone).abs().max() <= 1e-5 * together.abs().max()
    assert together.std(0).min() > 0


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in BUILD for name in specs_for(kind)])
def test_what_it_is_told_changes_what_it_says_and_so_does_the_null(kind: str, name: str) -> None:
    net = randomise(BUILD[kind](conditions={name: SPECS[name]}))
    x, t, told = batch(kind, specs=[name])
    here, other = net(x, t, **told), net(x, t, **{name: told[name].flip(0)})
    nothing = net(x, t, **{name: SPECS[name].null(name, x)})
    assert nothing.isfinite().all()
    for a, b in ((here[:1], other[:1]), (here, nothing)):
        assert (a - b).flatten(1).abs().amax(1).min() > 1e-3 * a.abs().max()


@EVERY
def test_the_time_changes_what_it_says(kind: str) -> None:
    net = randomise(BUILD[kind](conditions={}))
    x, t, _ = batch(kind)
    assert (net(x, t) - net(x, t + 1e-3)).abs().max() > 1e-4 * net(x, t).abs().max()


@EVERY
def test_nulls_give_finite_gradients(kind: str) -> None:
    net = randomise(BUILD[kind](conditions=specs_for(kind)))
    x, t, told = batch(kind)
    nothing = {name: spec_null(name, value, x) for name, value in told.items()}
    mixed = {
        name: torch.cat([value[:1], nothing[name][1:]]).requires_grad_(value.is_floating_point())
        for name, value in told.items()
    }
    x.requires_grad_()
    net(x, t, **mixed).square().sum().backward()
    for name, tensor in [*net.named_parameters(), ("x", x), *mixed.items()]:
        assert tensor.grad is None or tensor.grad.isfinite().all(), name


@EVERY
def test_forward_mode_agrees_with_finite_differences(kind: str) -> None:
    net = randomise(BUILD[kind](conditions=specs_for(kind))).double()
    x, t, told = batch(kind)
    x, t, told = x.double(), t.double(), doubled(told)
    dx, dt, dto = torch.randn_like(x), torch.rand_like(t), torch.rand_like(t)

    def f(x: Tensor, t: Tensor, to: Tensor) -> Tensor:
        return net(x, t, **{**told, "to": to})

    _, slope = torch.func.jvp(f, (x, t, told["to"]), (dx, dt, dto))
    h = 1e-7  # the highest frequency is 1000 radians per unit of time
    up, down = (f(x + s * dx, t + s * dt, told["to"] + s * dto) for s in (h, -h))
    assert (slope - (up - down) / (2 * h)).abs().max() < 1e-5 * slope.abs().max()


@pytest.mark.parametrize("kind", ["mlp", "unet2", "dit2", "mmdit2"])
def test_bfloat16_autocast_changes_only_the_rounding(kind: str) -> None:
    net = BUILD[kind](conditions=specs_for(kind)).eval()
    torch.manual_seed(3)
    for parameter in net.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    x, t, told = batch(kind)
    exact = net(x, t, **told)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, t, **told)
    rounded.square().sum().backward()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", ["mlp", "unet2", "dit2", "mmdit2"])
def test_compiled_is_the_same_function(kind: str) -> None:
    net = randomise(BUILD[kind](conditions=specs_for(kind)))
    x, t, told = batch(kind)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, t, **told), net(x, t, **told), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "unet2", "dit2", "mmdit2"])
def test_it_makes_everything_on_the_device_of_x(kind: str) -> None:
    net = BUILD[kind](conditions=specs_for(kind)).to("meta")
    x, t, told = batch(kind)
    out = net(x.to("meta"), t.to("meta"), **{name: value.to("meta") for name, value in told.items()})
    assert out.device.type == "meta"


@EVERY
def test_its_fields_are_the_arguments_that_rebuild_it(kind: str) -> None:
    net = randomise(BUILD[kind](conditions=specs_for(kind)))
    again = type(net)(**{field.name: getattr(net, field.name) for field in dataclasses.fields(net)}).eval()
    again.load_state_dict(net.state_dict())
    x, t, told = batch(kind)
    assert torch.equal(net(x, t, **told), again(x, t, **told))


@pytest.mark.parametrize("kind", ["unet2", "dit2", "mmdit2"])
def test_out_channels_may_differ_from_channels(kind: str) -> None:
    net = randomise(BUILD[kind](conditions={}, out_channels=5))
    x, t, _ = batch(kind)
    assert net(x, t).shape == (3, 5, 4, 6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_patches_go_back_to_where_they_were_cut(dims: int) -> None:
    """One patch's output may depend on its own pixels only, once attention sees nothing but itself."""
    net = randomise(DiT(2, width=16, depth=2, heads=2, dims=dims))
    size = (8, 6, 4)[:dims]
    x, t = torch.randn(1, 2, *size), torch.rand(1)
    changed = x.clone()
    changed[(0, 1, *[n - 1 for n in size])] += 1
    with tapped(net, lambda site, q, k, v, mask: v):
        moved = (net(changed, t) - net(x, t))[0].abs().amax(0) > 0
    expected = torch.zeros(size, dtype=torch.bool)
    expected[tuple(slice(n - 2, n) for n in size)] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_dit_knows_where_a_patch_is_along_every_axis(axis: int) -> None:
    net = randomise(DiT(2, width=16, depth=2, heads=2))
    x, t = torch.randn(1, 2, 8, 8), torch.rand(1)
    rolled = net(x.roll(2, axis + 2), t).roll(-2, axis + 2)
    assert (rolled - net(x, t)).abs().max() > 1e-2 * rolled.abs().max()


@pytest.mark.parametrize("kind", ["unet2", "dit2"])
def test_dropout_acts_in_training_only(kind: str) -> None:
    net = randomise(BUILD[kind](conditions={}, dropout=0.5))
    x, t, _ = batch(kind)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


def test_attention_levels_count_from_both_ends() -> None:
    def attentions(levels: tuple[int, ...]) -> list[str]:
        net = UNet(1, width=8, multipliers=(1, 2, 2), blocks=1, attention=levels)
        return [name for name, module in net.named_modules() if type(module).__name__ == "Attention"]

    assert attentions((-1,)) == attentions((2,)) != attentions((0,))
    assert len(attentions(())) == 1
    with pytest.raises(ValueError, match=r"levels in -3\.\.2, got 3"):
        UNet(1, attention=(3,))


def test_a_unet_level_of_one_pixel_still_tells_images_apart() -> None:
    net = UNet(1, width=8, multipliers=(1, 1, 1), blocks=1).eval()
    heard = []
    net.middle[0].block.norm1.register_forward_hook(lambda module, args, out: heard.append(out))
    net(torch.randn(2, 1, 4, 4), torch.full((2,), 0.5))
    assert heard[0].shape[2:] == (1, 1)
    assert (heard[0][0] - heard[0][1]).abs().max() > 0.1
