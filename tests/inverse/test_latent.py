"""Methods made for latents and flows, and fill: each is the step it names, and keeps what it says it keeps."""

import pytest
import torch

import suffuse as sf
from suffuse import inverse, operators, oracle, samplers, schedules

from .methods import MASK, SHAPE, gaussian, mixture, turned

D = int(torch.Size(SHAPE).numel())


def _decode(z):
    return torch.sinh(z).roll(1, -1)


def _encode(x):
    return 0.8 * torch.asinh(x).roll(-1, -1)


def _numeric(f, x, h=1e-6):
    slope = torch.zeros_like(x)
    for i in range(D):
        e = torch.zeros(D, dtype=torch.float64)
        e[i] = h
        slope.reshape(len(x), D)[:, i] = (f(x + e.reshape(SHAPE)) - f(x - e.reshape(SHAPE))) / (2 * h)
    return slope


@pytest.mark.parametrize(("zeta", "gamma"), [(0.4, 0.0), (0.0, 0.4), (0.3, 0.2)])
def test_psld_is_its_step(zeta, gamma):
    """A step of ddim moves by minus the numeric gradient of both norms, through decoder and encoder, row by row."""
    world, A = mixture(), operators.Downsample(2, SHAPE[1:], filter="area")
    y = A(world.sample(3, seed=1))
    x = sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)

    def loss(x):
        z0 = world(x, 0.7).x0
        picture = _decode(z0)
        glued = z0 - _encode(picture + A.pinv(y - A(picture)))
        return zeta * (y - A(picture)).flatten(1).norm(dim=1) + gamma * glued.flatten(1).norm(dim=1)

    plan = samplers.ddim.plan(world.schedule, [0.7, 0.5])
    made = inverse.psld(world, A, y, _decode, _encode, zeta=zeta, gamma=gamma, eta=0.0)
    torch.testing.assert_close(plan(made, x) - plan(world, x), -_numeric(loss, x), rtol=1e-5, atol=1e-7)


class _Turned:
    """A codec that loses nothing, and whose latents are drawn with much noise unless the mean is asked for."""

    decode = staticmethod(turned)

    def encode(self, x, seed):
        return turned(x) if seed is None else turned(x) + 9 * sf.noise(tuple(x.shape), seed, dtype=x.dtype)


@pytest.mark.parametrize("A", [MASK, operators.Downsample(2, SHAPE[1:], filter="area")], ids=["mask", "downsample"])
def test_ddnm_through_a_decoder_is_ddnm_of_what_is_decoded(A):
    """With an orthogonal linear decoder both are the same."""
    world, noise = mixture(), sf.noise((3, *SHAPE), seed=1, dtype=torch.float64)
    y = A(turned(world.sample(3, seed=3)))
    made, linear = (
        sf.sample(inverse.ddnm(world, A @ decoder, y), noise, sampler=samplers.ddpm, steps=6, seed=2)
        for decoder in (operators.Decode(_Turned()), operators.Flip(-1))
    )
    torch.testing.assert_close(made, linear)
    torch.testing.assert_close(A(turned(made)), y)
    with pytest.raises(TypeError, match="ddnm needs a linear operator"):
        inverse.ddnm(world, operators.HighDynamicRange(2.0) @ operators.Decode(_Turned()), y)


@pytest.mark.parametrize("name", ["resample", "flowdps", "blended"])
@pytest.mark.parametrize("schedule", [schedules.Linear(), schedules.VP()], ids=["linear", "vp"])
def test_states_that_are_drawn_anew_keep_the_noise_level(name, schedule):
    """On data that are one point, measured without noise, every state the model is asked at has noise sigma_t^2."""
    n, asked = 6000, []
    point = oracle.Gaussian(gaussian().mean(), 1e-14).on(schedule)
    y = MASK(point.mean().expand(1, *SHAPE))
    noise = sf.noise((n, *SHAPE), seed=1, dtype=torch.float64)
    model = _Seen(point, asked)
    if name == "resample":  # the old state's share takes noise away: without it, none is missing
        inverse.resample(model, MASK, y, noise, 0.01, steps=5, every=1, below=1.0, strength=1e12, seed=3)
    else:
        getattr(inverse, name)(model, MASK, y, noise, steps=5, seed=3)
    assert len(asked) == 5
    for t, x in asked[1:]:
        alpha, sigma = schedule(t)
        white = (x - alpha * point.mean()).flatten(1) / sigma
        cov = white.T @ white / n - torch.eye(D, dtype=torch.float64)
        assert white.mean(0).abs().max() < 4.8 / n**0.5, t
        assert (cov / (1 + torch.eye(D, dtype=torch.float64)).sqrt()).abs().max() < 4.8 / n**0.5, t


class _Seen:
    """A model that writes down what it is asked."""

    def __init__(self, world, asked):
        self.world, self.schedule, self.asked = world, world.schedule, asked

    def __call__(self, x, t, *, to=None):
        self.asked.append((t, x))
        return self.world(x, t)


def test_resample_mixes_old_and_new_as_gaussians_multiply():
    """Mean and variance of a state drawn anew are those of N(old, g) N(x_b*, s), found by summing their product."""
    point, strength, n, asked = oracle.Gaussian(torch.zeros(1, dtype=torch.float64), 1e-14), 3.0, 40000, []
    start, y = torch.full((n, 1), 1.3, dtype=torch.float64), torch.tensor([[0.8]], dtype=torch.float64)
    how = {"steps": 3, "every": 1, "below": 0.7, "rate": 0.05, "inner": 400, "strength": strength, "seed": 3}
    inverse.resample(_Seen(point, asked), operators.Identity(), y, start, 0.0, **how)
    (_, _), (t, x_a), (s, x) = asked
    (alpha, sigma), (alpha_b, sigma_b) = point.schedule(t), point.schedule(s)
    old = sigma_b / sigma * x_a[0, 0]  # ddim with x0 = 0
    g = strength * (sigma_b / alpha) ** 2 * (1 - (alpha / alpha_b) ** 2)
    u = torch.linspace(-5, 5, 20001, dtype=torch.float64)
    w = torch.softmax(-0.5 * (u - old) ** 2 / g - 0.5 * (u - alpha_b * 0.8) ** 2 / sigma_b**2, 0)
    mean = (w * u).sum()
    var = (w * (u - mean) ** 2).sum()
    assert abs(x.mean() - mean) < 5 * (var / n) ** 0.5 + 1e-3
    assert abs(x.var() / var - 1) < 0.05


def test_resample_stops_where_the_noise_explains_the_rest():
    """Latents whose pictures explain y to sigma and no closer; rows that did from the start are what the model says."""
    world, A, sigma = mixture(), MASK @ operators.from_function(_decode, linear=False), 0.3
    noise = sf.noise((4, *SHAPE), seed=1, dtype=torch.float64)
    y = A(world.sample(4, seed=3)) + 0.5 * MASK.known
    x = inverse.resample(world, A, y, noise, sigma, steps=6, every=2, inner=300, seed=2)
    left = (y - A(x)).flatten(1).square().sum(1)
    assert (left <= sigma**2 * D * 1.0001).all() and (left > 0.5 * sigma**2 * D).all(), left
    loose = inverse.resample(world, A, y, noise, 100.0, steps=1, seed=2)
    assert torch.equal(loose, sf.sample(world, noise, sampler=samplers.ddim, grid=[1.0, 0.0]))


def test_flowdps_takes_y_at_the_noise_and_the_model_at_the_data():
    """One step from t = 1: what is measured is y, the rest the prior's mean; later steps count y by the time."""
    world, y = gaussian(), MASK(gaussian().sample(2, seed=3))
    noise = sf.noise((2, *SHAPE), seed=1, dtype=torch.float64)
    known = MASK.known.expand(SHAPE)
    once = inverse.flowdps(world, MASK, y, noise, steps=1, inner=1, scale=1.0, seed=2)
    torch.testing.assert_close(once[:, known], y[:, known])
    torch.testing.assert_close(once[:, ~known], world.mean()[~known].expand(2, -1))
    point = oracle.Gaussian(gaussian().mean(), 1e-14)
    ends = inverse.flowdps(point, MASK, y, noise, steps=4, inner=1, scale=1.0, seed=2)
    share = 0.25  # the last time of 4 steps on a flow
    torch.testing.assert_close(ends[:, known], ((1 - share) * point.mean() + share * y)[:, known], rtol=0, atol=1e-5)


def test_a_blend_hears_its_model_in_the_hole_and_begins_where_it_is_told():
    """Two classes that agree where it is known: the label decides the hole; from a late start the picture does."""
    means = torch.tensor([[[[1.0, 1.0]]], [[[1.0, -1.0]]]]).double()
    world = oracle.Mixture([0.5, 0.5], means, 0.02)
    A, y = operators.Mask(torch.tensor([[True, False]])), torch.tensor([[[[1.0, 0.0]]]]).double()
    noise = sf.noise((64, 1, 1, 2), seed=1, dtype=torch.float64)
    for label, sign in ((0, 1), (1, -1)):
        x = inverse.blended(world.given(label=label), A, y, noise, steps=12, seed=2)
        assert torch.equal(x[..., 0], y[..., 0].expand(64, 1, 1))
        assert (x[..., 1].mean() - sign).abs() < 0.1
        picture = torch.tensor([[[[1.0, float(sign)]]]]).double().expand_as(noise)
        begun = inverse.blended(world, A, y, noise, steps=6, start=(picture, 0.3), seed=2)
        assert (begun[..., 1].sign() == sign).double().mean() > 0.9, "30 % of noise hardly hides which it was"
    free = inverse.blended(world, A, y, noise, steps=12, seed=2)[..., 1]
    assert 0.2 < (free > 0).double().mean() < 0.8
