"""Law 8 for every method: row i alone is row i in a batch."""

import pytest
import torch

import suffuse as sf
from suffuse import inverse, samplers

from .methods import MASK, METHODS, SHAPE, WINDOW, mixture


def test_every_method_is_tried():
    assert set(METHODS) == set(inverse.__all__)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", METHODS)
def test_a_sample_does_not_depend_on_its_batch_mates(name, dtype):
    world, act = mixture(), METHODS[name]
    k = 16 if name == "tds" else 1  # particles of one measurement belong together
    rows = 3 * k
    y = MASK(world.sample(3, seed=3)).to(dtype) * torch.tensor([1.0, 1.5, 0.2], dtype=dtype).reshape(3, 1, 1, 1)
    noise = sf.noise((rows, *SHAPE), seed=1, dtype=dtype)
    together = act(world, MASK, y, 0.2, noise, 5, 0)
    for i in range(3):
        part = slice(i * k, (i + 1) * k)
        alone = act(world, MASK, y[i : i + 1], 0.2, noise[part], 5, i * k)
        # 1e-11 is the law; single precision is rounded by row, in proportion to values, and a guided step enlarges that
        how = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0, "atol": 1e-11}
        torch.testing.assert_close(alone, together[part], **how)
    assert (together[0] - together[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"repaint", "blended"}))
def test_a_measurement_of_another_shape_counts_row_by_row(name):
    world, act = mixture(), METHODS[name]
    k = 16 if name == "tds" else 1
    y = WINDOW(world.sample(2, seed=3)) * torch.tensor([1.0, 0.2], dtype=torch.float64).reshape(2, 1, 1, 1)
    noise = sf.noise((2 * k, *SHAPE), seed=1, dtype=torch.float64)
    together = act(world, WINDOW, y, 0.2, noise, 5, 0)
    alone = act(world, WINDOW, y[1:], 0.2, noise[k:], 5, k)
    torch.testing.assert_close(alone, together[k:], rtol=0, atol=1e-11)
    other = act(world, WINDOW, y.flip(0), 0.2, noise, 5, 0)
    assert (other - together).abs().max() > 1e-3, "y is heard"


@pytest.mark.parametrize("name", METHODS)
def test_one_measurement_serves_all_rows(name):
    if name == "tds":
        return  # there one measurement for all rows is the ordinary case
    world, y = mixture(), MASK(mixture().sample(1, seed=3))
    noise = sf.noise((3, *SHAPE), seed=1, dtype=torch.float64)
    one = METHODS[name](world, MASK, y, 0.2, noise, 5, 0)
    many = METHODS[name](world, MASK, y.expand(3, *SHAPE), 0.2, noise, 5, 0)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["ddnm", "ddrm"])
def test_rows_are_taken_with_their_measurements(name):
    """Also back and forth: a jump to the start of the grid ends where the measurement is."""
    world = mixture()
    y, index = MASK(world.sample(3, seed=3)), torch.tensor([2, 2, 0, 1])
    noise = sf.noise((3, *SHAPE), seed=1, dtype=torch.float64)
    model, sampler = (
        (world, inverse.ddrm(MASK, y, 0.0)) if name == "ddrm" else (inverse.ddnm(world, MASK, y), samplers.ddpm)
    )
    visited = []
    for step in sf.run(model, noise, sampler=sampler, steps=4, seed=2):
        visited.append(step.k)
        if visited == [0, 1]:
            step.take(index)
            step.goto(1)
        out = step.x
    assert visited == [0, 1, 1, 2, 3]
    assert torch.equal(MASK(out), y[index])
