"""Law 9: one clear sentence for what cannot be."""

import pytest
import torch

import suffuse as sf
from suffuse import inverse, operators

from .methods import MASK, METHODS, SHAPE, mixture

WORLD = mixture()
Y = MASK(WORLD.sample(3, seed=3))
NOISE = sf.noise((3, *SHAPE), seed=1, dtype=torch.float64)
HOLE = Y.clone()
HOLE[0, 0, 0, 0] = torch.nan
LINEAR_ONLY = {"pigdm", "mmps", "mcg", "ddnm", "ddnm_plus", "ddrm", "diffpir", "repaint", "blended", "psld"}


def _raises(kind, message, act):
    with pytest.raises(kind, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300, "one sentence"


@pytest.mark.parametrize("name", METHODS)
def test_a_measurement_with_holes(name):
    _raises(
        ValueError,
        "y has 1 of 36 values that are not finite",
        lambda: METHODS[name](WORLD, MASK, HOLE, 0.2, NOISE, 5, 0),
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_measurement_that_does_not_fit(name):
    _raises(
        ValueError,
        r"y has rows of shape \(1, 3, 3\), but Mask.* makes \(1, 3, 4\)",
        lambda: METHODS[name](WORLD, MASK, Y[..., :3], 0.2, NOISE, 5, 0),
    )


@pytest.mark.parametrize("name", METHODS)
def test_an_operator_that_does_not_fit(name):
    A = operators.Mask.box((5, 5), (0, 0, 2, 2))
    _raises(
        ValueError,
        r"a mask of shape \(5, 5\) does not fit data \(1, 3, 4\)",
        lambda: METHODS[name](WORLD, A, Y, 0.2, NOISE, 5, 0),
    )


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"tds"}))
def test_a_measurement_of_other_rows(name):
    _raises(
        ValueError,
        "y was measured for 2 rows, the batch has 3",
        lambda: METHODS[name](WORLD, MASK, Y[:2], 0.2, NOISE, 5, 0),
    )


@pytest.mark.parametrize("name", sorted(LINEAR_ONLY))
def test_a_nonlinear_operator_given_to_a_linear_method(name):
    A = operators.HighDynamicRange()
    _raises(
        TypeError,
        rf"{name} needs a linear operator, HighDynamicRange\(2\) is not",
        lambda: METHODS[name](WORLD, A, A(Y), 0.2, NOISE, 5, 0),
    )


@pytest.mark.parametrize("name", sorted(set(METHODS) - LINEAR_ONLY))
def test_what_takes_any_operator_takes_one_with_a_gradient(name):
    A = operators.HighDynamicRange()
    x = METHODS[name](WORLD, A, A(Y), 0.2, NOISE, 5, 0)
    assert x.isfinite().all()
    _raises(
        TypeError,
        rf"{name} needs the operator's gradient, Quantise\(4\) has none",
        lambda: METHODS[name](WORLD, operators.Quantise(4), Y, 0.2, NOISE, 5, 0),
    )


@pytest.mark.parametrize("name", ["mmps", "tds"])
def test_no_noise_where_it_is_divided_by(name):
    _raises(ValueError, f"{name} divides by sigma, got 0", lambda: METHODS[name](WORLD, MASK, Y, 0.0, NOISE, 5, 0))


@pytest.mark.parametrize("name", ["daps", "pnpdm"])
def test_no_noise_where_langevin_divides_by_it(name):
    A = operators.HighDynamicRange()
    _raises(ValueError, f"{name} divides by sigma, got 0", lambda: METHODS[name](WORLD, A, A(Y), 0.0, NOISE, 5, 0))
    assert METHODS[name](WORLD, MASK, Y, 0.0, NOISE, 5, 0).isfinite().all(), "with a linear operator nothing does"


@pytest.mark.parametrize("name", ["pigdm", "diffpir", "ddrm", "ddnm_plus", "daps", "pnpdm", "resample"])
def test_photons_given_to_a_method_for_gaussian_noise(name):
    _raises(
        TypeError,
        rf"{name} takes Gaussian noise of one standard deviation, got PoissonNoise\(20\): mmps, tds and dps",
        lambda: METHODS[name](WORLD, MASK, Y, operators.PoissonNoise(20), NOISE, 5, 0),
    )
    named = METHODS[name](WORLD, MASK, Y, operators.GaussianNoise(0.2), NOISE, 5, 0)
    assert torch.equal(named, METHODS[name](WORLD, MASK, Y, 0.2, NOISE, 5, 0)), "sigma may be named"


@pytest.mark.parametrize("name", ["pigdm", "mmps", "diffpir", "ddrm", "ddnm_plus", "tds", "daps", "pnpdm", "resample"])
def test_negative_noise(name):
    _raises(ValueError, "at least 0, got -1", lambda: METHODS[name](WORLD, MASK, Y, -1.0, NOISE, 5, 0))


OTHER = {
    "no operator": (lambda: inverse.ddnm(WORLD, torch.eye(12), Y), TypeError, "must be an operator.* got Tensor"),
    "integers": (lambda: inverse.ddnm(WORLD, MASK, Y.long()), TypeError, "floating-point tensor, got torch.int64"),
    "no batch": (lambda: inverse.dps(WORLD, MASK, Y[0, 0, 0]), ValueError, r"batch of measurements.* got shape \(4,\)"),
    "a number": (
        lambda: inverse.dps(WORLD, MASK, Y[0, 0, 0, 0]),
        ValueError,
        r"batch of measurements.* got shape \(\)",
    ),
    "no rows": (
        lambda: inverse.tds(WORLD, MASK, Y[:0], NOISE, 0.1, steps=3, seed=0),
        ValueError,
        "at least one measurement, got 0",
    ),
    "no rounds": (
        lambda: inverse.pnpdm(WORLD, MASK, Y, NOISE, 0.1, rounds=0, seed=0),
        ValueError,
        "rounds and inner must be at least 1, got 0 and 10",
    ),
    "no gradient steps": (
        lambda: inverse.flowdps(WORLD, MASK, Y[..., :2], NOISE, steps=3, inner=0, seed=0),
        ValueError,
        "inner counts gradient steps, at least 1, got 0",
    ),
    "no moves": (
        lambda: inverse.resample(WORLD, MASK, Y[..., :2], NOISE, 0.1, steps=3, inner=0, seed=0),
        ValueError,
        "inner counts gradient steps, at least 1, got 0",
    ),
    "noise is no number": (
        lambda: inverse.dps(WORLD, MASK, Y, noise=0.2),
        TypeError,
        r"such as operators.PoissonNoise\(peak\), got 0.2",
    ),
    "no next time": (lambda: inverse.dps(WORLD, MASK, Y)(NOISE, 0.5), ValueError, "say to="),
    "no step": (lambda: inverse.dps(WORLD, MASK, Y)(NOISE, 0.5, to=0.5), ValueError, "from t=0.5 to=0.5 there is no"),
    "no mask to blend": (
        lambda: inverse.blended(WORLD, operators.Flip(), Y, NOISE, steps=4, seed=0),
        TypeError,
        "what a Mask hides",
    ),
    "never": (
        lambda: inverse.resample(WORLD, MASK, Y, NOISE, 0.1, steps=4, every=0, seed=0),
        ValueError,
        "every counts steps, at least 1, got 0",
    ),
    "no spectrum": (
        lambda: sf.sample(
            WORLD, NOISE, sampler=inverse.ddrm(operators.Rotation(20, SHAPE[1:]), Y, 0.1), steps=3, seed=0
        ),
        ValueError,
        "does not know its own: take operators.Matrix",
    ),
    "no seed": (
        lambda: sf.sample(WORLD, NOISE, sampler=inverse.ddrm(MASK, Y, 0.1), steps=3),
        ValueError,
        "give it a seed",
    ),
    "eta": (lambda: inverse.ddrm(MASK, Y, 0.1, eta=2), ValueError, "eta is a share between 0 and 1, got 2"),
    "no mask": (
        lambda: inverse.repaint(WORLD, operators.Flip(), Y, NOISE, steps=4, jump=2, seed=0),
        TypeError,
        "what a Mask hides",
    ),
    "particles": (
        lambda: inverse.tds(WORLD, MASK, Y[:2], NOISE, 0.1, steps=3, seed=0),
        ValueError,
        "2 measurements, got 3 rows",
    ),
    "no steps": (lambda: inverse.tds(WORLD, MASK, Y, NOISE, 0.1, seed=0), ValueError, "say how long"),
    "levels": (
        lambda: inverse.pnpdm(WORLD, MASK, Y, NOISE, 0.1, high=0.1, low=1, seed=0),
        ValueError,
        "0 < low <= high",
    ),
    "spread": (lambda: inverse.pigdm(WORLD, MASK, Y, 0.1, spread=0), ValueError, "spread.* must be positive, got 0"),
    "lam": (lambda: inverse.diffpir(WORLD, MASK, Y, 0.1, lam=0), ValueError, "lam must be positive, got 0"),
    "iterations": (lambda: inverse.mmps(WORLD, MASK, Y, 0.1, iterations=0), ValueError, "at least 1, got 0"),
}


@pytest.mark.parametrize("name", OTHER)
def test_misuse(name):
    act, kind, message = OTHER[name]
    _raises(kind, message, act)


def test_an_affine_operator_is_as_good_as_a_linear_one():
    A = operators.negative(0.0, 1.0)
    y = A(WORLD.sample(3, seed=3))
    x = METHODS["ddnm"](WORLD, A, y, 0.0, NOISE, 5, 0)
    torch.testing.assert_close(A(x), y)
