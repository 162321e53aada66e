"""What a network refuses, and how it says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from suffuse.nets import MLP, DiT, Label, Scalar, Spatial, UNet
from tests.nets.kinds import BUILD, EVERY, IMAGES, batch


@EVERY
def test_a_missing_and_an_unknown_condition_are_named(kind: str) -> None:
    net = BUILD[kind](conditions={"label": Label(5), "to": Scalar()})
    x, t, _ = batch(kind)
    label = torch.zeros(3, dtype=torch.long)
    with pytest.raises(TypeError, match=r"takes the conditions label, to: missing to$"):
        net(x, t, label=label)
    with pytest.raises(TypeError, match=r"takes the conditions label, to: missing to and unknown two$"):
        net(x, t, label=label, two=t)
    with pytest.raises(TypeError, match=r"takes no conditions: unknown label$"):
        BUILD[kind](conditions={})(x, t, label=label)


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (
            UNet(1, width=8),
            (30, 30),
            r"UNet with 3 levels halves 2 times: sizes must be multiples of 4, "
            r"got \(30, 30\); \(28, 28\) or \(32, 32\) would fit",
        ),
        (UNet(1, width=8, dims=1), (3,), r"got \(3,\); \(4,\) would fit"),
        (UNet(1, width=8, dims=3), (4, 6, 8), r"\(4, 4, 8\) or \(4, 8, 8\) would fit"),
        (
            DiT(1, patch=4, depth=1),
            (8, 10),
            r"patches of side 4: sizes must be multiples of 4, "
            r"got \(8, 10\); \(8, 8\) or \(8, 12\) would fit",
        ),
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
    with pytest.raises(ValueError, match=r"no pixels to join 'depth' to"):
        MLP(3, conditions={"depth": Spatial(1)})


@EVERY
def test_times_and_conditions_must_have_one_row_each(kind: str) -> None:
    net = BUILD[kind](conditions={"label": Label(5)})
    x, t, told = batch(kind, specs=["label"])
    with pytest.raises(ValueError, match=r"one time per row, shape \(3,\), got \(1,\)"):
        net(x, t[:1], **told)
    with pytest.raises(ValueError, match=r"label must have one row for each of x's 3, got 1"):
        net(x, t, label=told["label"][:1])


def test_a_spatial_condition_must_have_the_size_of_x() -> None:
    net = DiT(2, depth=1, conditions={"depth": Spatial(1)})
    with pytest.raises(ValueError, match=r"depth must have x's spatial size \(4, 4\), got \(8, 8\)"):
        net(torch.zeros(1, 2, 4, 4), torch.zeros(1), depth=torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("build", [lambda: UNet(1, dims=4), lambda: DiT(1, dims=0)])
def test_only_one_two_or_three_dimensions(build: object) -> None:
    with pytest.raises(ValueError, match=r"dims must be 1, 2 or 3, got"):
        build()


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match=r"heads must divide the 128 channels of its layer, got 5"):
        DiT(1, heads=5)


@pytest.mark.parametrize("name", ["x", "t", "a b"])
def test_a_condition_needs_a_name_that_can_be_passed(name: str) -> None:
    with pytest.raises(ValueError, match=r"identifier other than x and t"):
        MLP(2, conditions={name: Label(2)})


def test_conditions_are_specs() -> None:
    with pytest.raises(TypeError, match=r"'label' must be a spec such as Label\(10\), got 10"):
        MLP(2, conditions={"label": 10})
