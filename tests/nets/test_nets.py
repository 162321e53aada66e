"""Claims about the networks themselves: MLP, UNet and DiT, in every number of dimensions they take."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from suffuse.nets import MLP, DiT, Label, Scalar, Spatial, Tokens, UNet, Vector, tapped

SPECS = {
    "label": Label(5),
    "style": Vector(3),
    "to": Scalar(),
    "text": Tokens(4, vocab=9),
    "points": Tokens(2),
    "depth": Spatial(2, optional=True),
}
GIVEN = {
    "label": lambda b, size: torch.arange(b) % 5,
    "style": lambda b, size: torch.randn(b, 3),
    "to": lambda b, size: torch.rand(b),
    "text": lambda b, size: torch.randint(0, 9, (b, 4)),
    "points": lambda b, size: torch.randn(b, 6, 2),
    "depth": lambda b, size: torch.randn(b, 2, *size),
}
BUILD = {
    "mlp": partial(MLP, 3, width=16, depth=2),
    "unet1": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, dims=1),
    "unet2": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, heads=2),
    "unet3": partial(UNet, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, dims=3),
    "dit1": partial(DiT, 2, width=16, depth=2, heads=2, dims=1),
    "dit2": partial(DiT, 2, width=16, depth=2, heads=2),
    "dit3": partial(DiT, 2, width=16, depth=2, heads=2, dims=3),
}
SIZES = {"mlp": (), "unet1": (12,), "unet2": (4, 6), "unet3": (2, 4, 6)}
SIZES |= {"dit1": (12,), "dit2": (4, 6), "dit3": (2, 4, 6)}
EVERY = pytest.mark.parametrize("kind", BUILD)
IMAGES = pytest.mark.parametrize("kind", [kind for kind in BUILD if kind != "mlp"])


def specs_for(kind: str) -> dict:
    return {name: spec for name, spec in SPECS.items() if kind != "mlp" or name != "depth"}


def randomise(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def batch(kind: str, rows: int = 3, specs: dict | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(2)
    size = SIZES[kind]
    x = torch.randn(rows, 3) if kind == "mlp" else torch.randn(rows, 2, *size)
    names = specs_for(kind) if specs is None else specs
    return x, torch.rand(rows), {name: GIVEN[name](rows, size) for name in names}


def doubled(told: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in told.items()}


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
            assert net.out.weight.grad.abs().max() > 0
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
    mixed = {name: torch.cat([value[:1], nothing[name][1:]]).requires_grad_(value.is_floating_point())
             for name, value in told.items()}
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


@pytest.mark.parametrize("kind", ["mlp", "unet2", "dit2"])
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


@pytest.mark.parametrize("kind", ["mlp", "unet2", "dit2"])
def test_compiled_is_the_same_function(kind: str) -> None:
    net = randomise(BUILD[kind](conditions=specs_for(kind)))
    x, t, told = batch(kind)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x, t, **told), net(x, t, **told), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "unet2", "dit2"])
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


@pytest.mark.parametrize("kind", ["unet2", "dit2"])
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


# Misuse


@EVERY
def test_a_missing_and_an_unknown_condition_are_named(kind: str) -> None:
    net = BUILD[kind](conditions={"label": Label(5), "to": Scalar()})
    x, t, _ = batch(kind)
    label = torch.zeros(3, dtype=torch.long)
    with pytest.raises(TypeError, match="takes the conditions label, to: missing to$"):
        net(x, t, label=label)
    with pytest.raises(TypeError, match="takes the conditions label, to: missing to and unknown two$"):
        net(x, t, label=label, two=t)
    with pytest.raises(TypeError, match="takes no conditions: unknown label$"):
        BUILD[kind](conditions={})(x, t, label=label)


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (UNet(1, width=8), (30, 30), r"UNet with 3 levels halves 2 times: sizes must be multiples of 4, "
                                     r"got \(30, 30\); \(28, 28\) or \(32, 32\) would fit"),
        (UNet(1, width=8, dims=1), (3,), r"got \(3,\); \(4,\) would fit"),
        (UNet(1, width=8, dims=3), (4, 6, 8), r"\(4, 4, 8\) or \(4, 8, 8\) would fit"),
        (DiT(1, patch=4, depth=1), (8, 10), r"patches of side 4: sizes must be multiples of 4, "
                                            r"got \(8, 10\); \(8, 8\) or \(8, 12\) would fit"),
    ],
)
def test_a_size_that_does_not_fit_names_sizes_that_do(net: nn.Module, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(1, 1, *size), torch.zeros(1))


@IMAGES
def test_the_wrong_number_of_channels_or_dimensions_is_an_error(kind: str) -> None:
    net, (x, t, _) = BUILD[kind](conditions={}), batch(kind)
    for wrong in (x[:, :1], x[..., None], x[0]):
        with pytest.raises(ValueError, match=r"takes x of shape \(B, 2, "):
            net(wrong, t[: len(wrong)])


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 4), (3,)])
def test_an_mlp_does_not_flatten_silently(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"MLP takes x of shape \(B, 3\), got"):
        MLP(3)(torch.zeros(shape), torch.zeros(shape[0]))


def test_an_mlp_refuses_a_spatial_condition_when_built() -> None:
    with pytest.raises(ValueError, match="no pixels to join 'depth' to"):
        MLP(3, conditions={"depth": Spatial(1)})


@EVERY
def test_times_and_conditions_must_have_one_row_each(kind: str) -> None:
    net = BUILD[kind](conditions={"label": Label(5)})
    x, t, told = batch(kind, specs=["label"])
    with pytest.raises(ValueError, match=r"one time per row, shape \(3,\), got \(1,\)"):
        net(x, t[:1], **told)
    with pytest.raises(ValueError, match="label must have one row for each of x's 3, got 1"):
        net(x, t, label=told["label"][:1])


def test_a_spatial_condition_must_have_the_size_of_x() -> None:
    net = DiT(2, depth=1, conditions={"depth": Spatial(1)})
    with pytest.raises(ValueError, match=r"depth must have x's spatial size \(4, 4\), got \(8, 8\)"):
        net(torch.zeros(1, 2, 4, 4), torch.zeros(1), depth=torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("build", [lambda: UNet(1, dims=4), lambda: DiT(1, dims=0)])
def test_only_one_two_or_three_dimensions(build: object) -> None:
    with pytest.raises(ValueError, match="dims must be 1, 2 or 3, got"):
        build()


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="heads must divide the 128 channels of its layer, got 5"):
        DiT(1, heads=5)


@pytest.mark.parametrize("name", ["x", "t", "a b"])
def test_a_condition_needs_a_name_that_can_be_passed(name: str) -> None:
    with pytest.raises(ValueError, match="identifier other than x and t"):
        MLP(2, conditions={name: Label(2)})


def test_conditions_are_specs() -> None:
    with pytest.raises(TypeError, match=r"'label' must be a spec such as Label\(10\), got 10"):
        MLP(2, conditions={"label": 10})
