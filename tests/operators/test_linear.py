"""Law 7 over everything exported: <A x, y> = <x, A.T y>, A pinv(A) A = A; and what follows from it."""

import pytest
import torch

from suffuse import noise
from suffuse import operators as ops

from .zoo import CASES, LINEAR, NOT_LINEAR, OTHER

linear = pytest.mark.parametrize("name", CASES)


def _x(shape, seed=0, rows=3):
    return noise((rows, *shape), seed=seed, dtype=torch.float64)


def test_everything_exported_is_tried():
    assert set(ops.__all__) == set(LINEAR) | set(NOT_LINEAR) | OTHER


@linear
def test_the_transpose_is_the_adjoint(name):
    A, shape = CASES[name]
    x = _x(shape)
    y = _x(A(x).shape[1:], seed=1)
    left, right = (A(x) * y).flatten(1).sum(1), (x * A.T(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    assert A.T(y).shape == x.shape and A.T.T is A


@linear
def test_the_pseudo_inverse_undoes_what_was_measured(name):
    A, shape = CASES[name]
    y = A(_x(shape))
    torch.testing.assert_close(A(A.pinv(y)), y, rtol=1e-5, atol=1e-5)
    z = A.T(_x(y.shape[1:], seed=2))
    torch.testing.assert_close(A.T(A.T.pinv(z)), z, rtol=1e-5, atol=1e-5)


@linear
@pytest.mark.parametrize("c", [0.0, 0.3])
def test_ridge_is_that_of_the_matrix(name, c):
    """For any y, also one that no x measures to: least squares, of smallest norm, or with its penalty."""
    A, shape = CASES[name]
    M = ops.matrix(A, shape)
    y = _x(A(_x(shape)).shape[1:], seed=4)
    if c:
        wanted = torch.linalg.solve(M.T @ M + c * torch.eye(M.shape[1]).double(), M.T @ y.flatten(1).T).T
        back = torch.linalg.solve(M @ M.T + c * torch.eye(M.shape[0]).double(), M @ _x(shape).flatten(1).T).T
    else:
        wanted = y.flatten(1) @ torch.linalg.pinv(M, rtol=1e-8).T
        back = _x(shape).flatten(1) @ torch.linalg.pinv(M, rtol=1e-8)
    torch.testing.assert_close(A.ridge(y, c).flatten(1), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(A.T.ridge(_x(shape), c).flatten(1), back, rtol=1e-5, atol=1e-5)


@linear
def test_a_penalty_may_differ_by_row_and_rows_do_not_meet(name):
    A, shape = CASES[name]
    y = _x(A(_x(shape)).shape[1:], seed=4)
    y = y * torch.tensor([1.0, 1e3, 1e-3]).double().reshape(3, *[1] * (y.ndim - 1))
    c = torch.tensor([0.3, 1.0, 0.01]).double()
    many = A.ridge(y, c)
    for i in range(3):
        alone = A.ridge(y[i : i + 1], float(c[i]))[0]
        torch.testing.assert_close(many[i], alone, rtol=1e-9, atol=1e-10 * alone.abs().max().item())


@linear
def test_the_spectrum_is_that_of_the_matrix(name):
    A, shape = CASES[name]
    known = A.spectrum(shape)
    if known is None:
        return
    x = _x(shape)
    z = known.to(x)
    torch.testing.assert_close(known.back(z), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(known.back(z * known.s**2), A.T(A(x)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(z.abs().square().flatten(1).sum(1), x.square().flatten(1).sum(1), rtol=1e-9, atol=0)


@linear
def test_single_precision_is_kept(name):
    A, shape = CASES[name]
    x = _x(shape)
    y = A(x.float())
    assert y.dtype == A.T(y).dtype == A.pinv(y).dtype == torch.float32
    torch.testing.assert_close(y.double(), A(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_is_not_linear_says_what_it_lacks(name):
    A, shape = NOT_LINEAR[name]
    x = 0.3 * _x(shape)
    for lack, has in (("T", hasattr(A, "T")), ("pinv", hasattr(A, "pinv"))):
        assert (lack in A.lacks) != has
    with pytest.raises(TypeError, match="only a linear operator has a matrix"):
        ops.matrix(A, shape)
    if "gradient" in A.lacks:
        with pytest.raises(TypeError, match="has no gradient"):
            A.vjp(x, A(x))
        return
    y, d, h = _x(A(x).shape[1:], seed=1), _x(shape, seed=2), 1e-6
    assert A.vjp(x, y).abs().max() > 0, "a gradient that is 0 everywhere is none"
    slope = ((A(x + h * d) - A(x - h * d)) / (2 * h) * y).flatten(1).sum(1)
    torch.testing.assert_close((A.vjp(x, y) * d).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-6)


def test_an_affine_operator_keeps_the_law():
    A, shape = NOT_LINEAR["Affine"]
    x, y = _x(shape), _x(shape, seed=1)
    torch.testing.assert_close(A(A.pinv(A(x))), A(x))
    torch.testing.assert_close(((A(x) - A(0 * x)) * y).sum(), (x * A.T(y)).sum())


def test_windows_leave_out_no_pixel():
    for A, shape in LINEAR["Crops"]:
        x = torch.ones(1, *shape)
        assert A.T(A(x)).min() >= 1, A


def test_windows_cover_and_average():
    """Two windows that overlap in a column: there pinv is their mean, elsewhere what the one window says."""
    A = ops.Crops((1, 3), (1, 2), (1, 5))
    assert A.corners == [(0, 0), (0, 2)]
    y = torch.tensor([[[[1.0, 2.0, 3.0]], [[7.0, 8.0, 9.0]]]])[:, :, None]
    torch.testing.assert_close(A.pinv(y)[0, 0, 0], torch.tensor([1.0, 2.0, 5.0, 8.0, 9.0]))
    around = ops.Crops((1, 3), (1, 2), (1, 4), wrap=True)
    assert around(torch.arange(4.0).reshape(1, 1, 1, 4))[0, 1, 0, 0].tolist() == [2.0, 3.0, 0.0]
    many, x = ops.Crops((2, 3), 1, (3, 90), wrap=True), _x((1, 3, 90))
    torch.testing.assert_close(many.pinv(many(x)), x)


def test_pictures_go_where_the_names_say():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 7] = 1  # right of the middle
    assert ops.Rotation(90, (9, 9))(x)[0, 0, 1, 4] == pytest.approx(1), "a quarter turn anticlockwise: now above"
    torch.testing.assert_close(ops.Rotation(90, (9, 9))(x), ops.Turn(1)(x))
    assert ops.Flip(-1)(x)[0, 0, 4, 1] == 1
    sums = ops.Radon((0, 90), (9, 9))(x)[0, 0]
    torch.testing.assert_close(sums, torch.eye(9)[[7, 4]], atol=1e-6, rtol=0)
    flat = torch.full((1, 1, 9, 8), 0.7)
    for A in (ops.Downsample(2, (9, 8)), ops.GaussianBlur(1.5), ops.MotionBlur(5, 20)):
        y = A(flat)
        torch.testing.assert_close(y, torch.full_like(y, 0.7)), "what is constant stays"


def test_downsampling_leaves_out_what_it_cannot_show():
    stripes = torch.cos(2 * torch.pi * 0.3 * torch.arange(32).double()).expand(1, 1, 32, 32)
    y = ops.Downsample(4, (32, 32))(stripes)
    assert y[..., 1:-1].abs().max() < 0.1, "without a filter they would come out as other stripes"


def test_the_gaussian_blur_is_as_wide_as_it_says():
    x = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    x[..., 16, 16] = 1
    at = torch.arange(33).double() - 16
    for padding in ("circular", "zero"):
        y = ops.GaussianBlur(2.0, padding)(x)[0, 0]
        assert (y.sum(1) * at**2).sum().item() == pytest.approx(4, rel=0.01)


def test_noise_has_the_moments_it_names():
    clean = torch.full((20000, 1), 0.2, dtype=torch.float64)
    g = ops.GaussianNoise(0.3)(clean, seed=1) - clean
    assert g.std().item() == pytest.approx(0.3, rel=0.02) and abs(g.mean().item()) < 0.01
    for peak in (4.0, 60.0):
        y = ops.PoissonNoise(peak)(clean, seed=1)
        rate = peak * 0.6
        assert y.mean().item() == pytest.approx(0.2, abs=4 * 2 / peak * (rate / 20000) ** 0.5)
        assert y.var().item() == pytest.approx(4 / peak**2 * rate, rel=0.05)
        best = torch.linspace(-0.9, 0.9, 181).double()
        fit = torch.stack([ops.PoissonNoise(peak).log_prob(y, torch.full_like(y, b)).mean() for b in best])
        assert best[fit.argmax()].item() == pytest.approx(0.2, abs=0.05)
    alone = ops.PoissonNoise(4.0)(clean[5:6], seed=1, first=5)
    assert torch.equal(alone, ops.PoissonNoise(4.0)(clean, seed=1)[5:6])


MISUSE = {
    "mask of greys": (lambda: ops.Mask(torch.rand(3, 3)), "true .1. where x is measured"),
    "mask of another size": (
        lambda: ops.Mask.box((8, 8), (0, 0, 2, 2))(_x((1, 9, 9))),
        r"\(8, 8\) does not fit data \(1, 9, 9\)",
    ),
    "box outside": (lambda: ops.Mask.box((8, 8), (5, 5, 4, 4)), "does not lie within 8 x 8"),
    "keep of 3": (lambda: ops.Mask.random((8, 8), keep=3, seed=0), "between 0 and 1, got 3"),
    "grey of grey": (lambda: ops.Greyscale()(_x((1, 8, 8))), "mixes 3 channels"),
    "window too large": (lambda: ops.Crops(9, 3, (8, 8)), "at most the canvas"),
    "gaps": (lambda: ops.Crops(3, 4, (8, 8)), "or pixels are left out"),
    "canvas": (lambda: ops.Crops(3, 2, (8, 8))(_x((1, 9, 9))), "is for a canvas"),
    "patches": (lambda: ops.patch_shuffle(3, (8, 8), 0), "do not tile 8 x 8"),
    "std": (lambda: ops.GaussianBlur(0), "must be positive, got 0"),
    "padding": (lambda: ops.GaussianBlur(1, "reflect"), "'circular' or 'zero', got 'reflect'"),
    "factor": (lambda: ops.Downsample(9, (8, 8)), "between 1 and the picture's size 8, got 9"),
    "not linear": (lambda: ops.from_function(torch.sin, (3,)), "is not linear"),
    "no shape": (lambda: ops.from_function(lambda x: x), "needs the shape"),
    "unlike measurements": (
        lambda: ops.stack(ops.Identity(), ops.Greyscale())(_x((3, 4, 4))),
        "stack when told the data's",
    ),
    "no permutation": (lambda: ops.Permutation([0, 0, 1], (3,)), "a permutation of 0..2"),
    "odd kernel": (lambda: ops.Blur(torch.ones(2, 3)), "odd height and width"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, message = MISUSE[name]
    with pytest.raises(ValueError, match=message) as raised:
        act()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
