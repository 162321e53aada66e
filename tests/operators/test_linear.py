"""Law 7 over everything exported: <A x, y> = <x, A.T y>, A pinv(A) A = A; and what follows from it."""

import warnings

import pytest
import torch

from suffuse import noise
from suffuse import operators as ops

from .zoo import CASES, HARD, LINEAR, NOT_LINEAR, OTHER

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


@pytest.mark.parametrize("name", [*CASES, *HARD])
def test_the_pseudo_inverse_undoes_what_was_measured(name):
    A, shape = (CASES | HARD)[name]
    y = A(_x(shape))
    torch.testing.assert_close(A(A.pinv(y)), y, rtol=1e-5, atol=1e-5)
    z = A.T(_x(y.shape[1:], seed=2))
    torch.testing.assert_close(A.T(A.T.pinv(z)), z, rtol=1e-5, atol=1e-5)


def test_what_does_not_converge_says_how_far_it_came():
    A = ops.GaussianBlur(2.0, "zero") @ ops.Rotation(20, (24, 24))
    A.limit = 20
    y = A(_x((1, 24, 24), rows=2))
    with pytest.warns(UserWarning, match=r"Rotation.*: after 20 .* residual is 0\.\d+ of .* not 1e-10") as said:
        x = A.pinv(y)
        A.pinv(y)
    assert x.isfinite().all() and len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.Rotation(20, (9, 9)).pinv(_x((1, 9, 9)))


@pytest.mark.parametrize("name", [*CASES, *NOT_LINEAR])
def test_rows_do_not_meet_also_where_the_batch_has_no_axis_to_spare(name):
    """Vectors (B, n) given to an operator on pictures are an error, or rows by themselves; there and back."""
    A, shape = (CASES | NOT_LINEAR)[name]
    tries = [(A, shape[-2:]), (A, (5, shape[-1])), (A, (3, 2))]
    if name not in NOT_LINEAR and A(_x(shape)).ndim > 2:
        tries += [(A.T, A(_x(shape)).shape[-2:]), (A.pinv, A(_x(shape)).shape[-2:])]
    for act, (rows, *size) in (t for t in tries if len(t[1]) == 2):
        x = 0.3 * _x(size, rows=rows)
        try:
            y = act(x)
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 300, error
            continue
        assert len(y) == rows
        torch.testing.assert_close(act(x[:1]), y[:1], rtol=1e-6, atol=1e-8)


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
        with pytest.raises(TypeError, match=r"has no gradient: .*guidance\.steer"):
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


@pytest.mark.parametrize("peak", [1000.0, 5000.0])
def test_many_photons_have_the_moments_of_their_rate(peak):
    """Where exp(-rate) is less than the smallest number."""
    clean = torch.tensor([-1.0, -0.99, 0.2, 0.9], dtype=torch.float64)
    y, rate = ops.PoissonNoise(peak)(clean.expand(20000, 4), seed=1), peak * (clean + 1) / 2
    k = (y + 1) / 2 * peak
    assert ((k.mean(0) - rate).abs() <= 4.5 * (rate / 20000).sqrt()).all(), k.mean(0)
    torch.testing.assert_close(k.var(0), rate, rtol=0.05, atol=0)


def test_few_photons_are_counted_as_before():
    """Draws are part of what a seed means."""
    y = ops.PoissonNoise(60.0)(torch.linspace(-1, 1, 6, dtype=torch.float64)[None], seed=1)
    assert ((y + 1) * 30).round().int().tolist() == [[0, 15, 25, 33, 36, 68]]


def test_colours_may_be_of_any_number_of_axes():
    """Pictures, sounds (B, C, L) and films (B, C, T, H, W)."""
    for shape in ((3, 5), (3, 4, 2, 3), (3,)):
        x = _x(shape)
        A = ops.Greyscale()
        torch.testing.assert_close(A.pinv(A(x)), A.T(A(x)) / A.w.square().sum())
        same = ops.Matrix(ops.matrix(A, shape), shape)
        torch.testing.assert_close(A.spectrum(shape).solve(x, 0.3), same.spectrum(shape).solve(x, 0.3))


def test_a_network_in_single_precision_is_an_operator():
    """A convolution is linear, tried out in the precision of its weights."""
    net = torch.nn.Conv2d(2, 3, 3, bias=False).requires_grad_(False)
    A = ops.from_function(net, (2, 6, 7))
    x = _x((2, 6, 7)).float()
    y = _x((3, 4, 5), seed=1).float()
    torch.testing.assert_close((A(x) * y).sum(), (x * A.T(y)).sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(A(A.pinv(A(x))), A(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"is made of torch\.float32, got data of torch\.float64"):
        A(x.double())
    with pytest.raises(ValueError, match=r"is made of torch\.float32, got data of torch\.float64"):
        A.T(y.double())
    with pytest.raises(ValueError, match="is not linear"):
        ops.from_function(torch.nn.Conv2d(2, 3, 3), (2, 6, 7))


def test_affine_after_linear_is_affine():
    x = _x((1, 8, 12))
    A = ops.negative(0.0, 1.0) @ ops.Downsample(2, (8, 12)) @ ops.Flip(-1)
    assert isinstance(A, ops.Affine)
    torch.testing.assert_close(A(x), 1 - ops.Downsample(2, (8, 12))(x.flip(-1)))
    torch.testing.assert_close(A(A.pinv(A(x))), A(x))
    assert not isinstance(ops.negative(0.0, 1.0) @ ops.HighDynamicRange(), ops.Affine)


MISUSE = {
    "frequencies of greys": (lambda: ops.MaskedFourier(torch.rand(4, 4)), "true .1. where a frequency is measured"),
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
