"""Fields render parameters into images: one network a row, any size, and any image within reach."""

import pytest
import torch

from suffuse import fields
from suffuse.losses import distillation

SIREN = fields.Siren((3, 16, 16), width=32, depth=2)


def target(h, w):
    """A smooth picture of any size: the same values at the same places."""
    y, x = torch.meshgrid(*[(2 * torch.arange(k) + 1) / k - 1 for k in (h, w)], indexing="ij")
    return torch.stack([torch.sin(3 * x) * y, x * y, torch.cos(2 * y)])


def test_a_siren_learns_a_picture_and_draws_it_at_twice_the_size():
    goal = target(16, 16)[None]
    loss = lambda image, share: (image - goal).square().flatten(1).sum(1)  # noqa: E731
    theta = distillation.descend(loss, SIREN.start(1, seed=0), steps=300, lr=0.01, field=SIREN)
    assert (SIREN(theta) - goal).square().mean() < 1e-3
    assert (SIREN(theta, (32, 32)) - target(32, 32)).square().mean() < 3e-4, "pixels' middles are places"


def test_each_row_is_an_image_of_its_own():
    theta = SIREN.start(5, seed=0)
    assert torch.equal(theta[3], SIREN.start(4, seed=0)[3]), "row i depends on (seed, i)"
    assert not torch.equal(theta[3], theta[2]) and not torch.equal(theta, SIREN.start(5, seed=1))
    torch.testing.assert_close(SIREN(theta)[3], SIREN(theta[3:4])[0])


def test_activations_are_as_wide_in_the_last_hidden_layer_as_in_the_first():
    """What the start is made for: the outputs of a deep network neither die nor saturate."""
    spread = {}
    for depth in (2, 6):
        field = fields.Siren((3, 16, 16), width=128, depth=depth)
        image = field(field.start(8, seed=0))
        spread[depth] = image.std().item()
    assert spread[6] == pytest.approx(spread[2], rel=0.25)


def test_frequencies_grow_with_omega():
    def roughness(omega):
        field = fields.Siren((1, 32, 32), width=64, depth=1, omega=omega)
        image = field(field.start(8, seed=0))
        return image.diff(dim=-1).square().mean() / image.var()

    assert roughness(20.0) > 3 * roughness(5.0)


def test_pixels_are_themselves():
    field = fields.Pixels((3, 4, 4), spread=0.5)
    theta = field.start(64, seed=0)
    assert field(theta) is theta and theta.abs().max() <= 0.5 and theta.std().item() == pytest.approx(0.29, abs=0.02)


def test_parameters_of_another_field_are_refused():
    with pytest.raises(ValueError, match=rf"theta must be \(B, {SIREN.parameters}\), got \(2, 7\)"):
        SIREN(torch.zeros(2, 7))
