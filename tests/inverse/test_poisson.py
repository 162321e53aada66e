"""Photons: methods that take Poisson noise, against posteriors found by adding up a fine grid of the plane."""

import pytest
import torch

import suffuse as sf
from suffuse import inverse, operators, oracle, samplers

from .methods import MASK, SHAPE, mixture

WORLD = oracle.Mixture([0.6, 0.4], torch.tensor([[0.5, -0.3], [-0.6, 0.2]]).double(), torch.tensor([0.06, 0.04]))
A = operators.Matrix(torch.tensor([[0.6, 0.0], [0.2, 0.7]]).double(), (2,))


def _summed(y, law, world=WORLD):
    """Mean (2,) and covariance (2, 2) of p(x | y) by a sum over 600 x 600 points."""
    side = torch.linspace(-2.5, 2.5, 600, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    w = torch.softmax(world.log_prob(x) + law.log_prob(y.expand(len(x), -1), A(x)), 0)[:, None]
    mean = (w * x).sum(0)
    return mean, (w * (x - mean)).T @ (x - mean)


@pytest.mark.parametrize("peak", [4.0, 40.0])
def test_particles_find_the_posterior_of_counted_photons(peak):
    law = operators.PoissonNoise(peak)
    y = law(A(WORLD.sample(1, seed=4)), seed=2)
    mean, cov = _summed(y, law)
    groups, k = 24, 64
    noise = sf.noise((groups * k, 2), seed=4, dtype=torch.float64)
    x = inverse.tds(WORLD, A, y.expand(groups, 2), noise, law, steps=100, seed=7)
    means = x.reshape(groups, k, 2).mean(1)
    error = (means - mean).square().sum(1).mean()
    assert error < 1.6 * cov.trace() / k, "hardly worse than exact draws"
    off = (means.mean(0) - mean).abs() / (cov.diagonal() / (groups * k)).sqrt()
    assert off.max() < 6, off
    assert ((torch.cov(x.T) - cov).norm() / cov.norm()) < 0.12


def test_moments_of_counts_beat_one_sigma_for_all():
    """MMPS on a Gaussian with a bright and a dark count: nearer to the posterior than with any one sigma."""
    world, law = oracle.Gaussian(torch.tensor([0.9, -0.7]).double(), 0.05), operators.PoissonNoise(60.0)
    y = A(torch.tensor([[1.2, -0.95]]).double())
    mean, cov = _summed(y, law, world)
    noise = sf.noise((2000, 2), seed=4, dtype=torch.float64)

    def off(sigma):
        x = sf.sample(inverse.mmps(world, A, y, sigma, iterations=4, tolerance=1e-8), noise, steps=24)
        return ((x.mean(0) - mean) @ torch.linalg.solve(cov, x.mean(0) - mean)).sqrt().item()

    photons, others = off(law), [off(s) for s in (0.02, 0.05, 0.1, 0.15, 0.2)]
    assert photons < 0.1, photons
    assert photons < 0.5 * min(others), (photons, others)


def test_counts_of_an_affine_measurement_vary_as_it_is_measured():
    """The variance is taken at A x0 with its offset: the same as of the same measurement said to be linear."""
    world, law, lift = oracle.Gaussian(torch.tensor([0.9, -0.7]).double(), 0.05), operators.PoissonNoise(60.0), 0.4
    linear, x = operators.Matrix(0.5 * torch.eye(2).double(), (2,)), sf.noise((3, 2), seed=4, dtype=torch.float64)
    affine, y = operators.Affine(linear, lift), torch.tensor([[0.95, 0.1]]).double()
    at = world(x, 0.5)
    gap, var = y - affine(at.x0), law.variance(affine(at.x0))
    alpha, sigma = world.schedule(0.5)
    prior = 0.05 * sigma**2 / (0.05 * alpha**2 + sigma**2)
    wanted = at.x0 + prior * 0.5 * gap / (var + prior * 0.25)
    torch.testing.assert_close(inverse.mmps(world, affine, y, law, iterations=9, tolerance=1e-9)(x, 0.5).x0, wanted)


def test_dps_weighs_counts_by_their_spread():
    """A step moves by the numeric gradient of the weighted norm; with Gaussian noise, of the plain one."""
    world, zeta, law = mixture(), 0.4, operators.PoissonNoise(15.0)
    y = law(MASK(world.sample(3, seed=1)), seed=2)
    x = sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)
    d = 12

    def norm(x, weigh):
        return (weigh * (y - MASK(world(x, 0.7).x0))).flatten(1).norm(dim=1)

    weigh = (15.0 * (y + 1) / 2).clamp(0.5, 15.0).rsqrt()
    weigh = weigh / weigh.flatten(1).norm(dim=1)[:, None, None, None] * d**0.5
    for noise, w in (
        (law, weigh),
        (operators.GaussianNoise(0.3), torch.ones_like(weigh)),
        (None, torch.ones_like(weigh)),
    ):
        slope, h = torch.zeros_like(x), 1e-6
        for i in range(d):
            e = torch.zeros(d, dtype=torch.float64)
            e[i] = h
            e = e.reshape(SHAPE)
            slope.reshape(3, d)[:, i] = (norm(x + e, w) - norm(x - e, w)) / (2 * h)
        plan = samplers.ddim.plan(world.schedule, [0.7, 0.5])
        moved = plan(inverse.dps(world, MASK, y, zeta=zeta, eta=0.0, noise=noise), x) - plan(world, x)
        torch.testing.assert_close(moved, -zeta * slope, rtol=1e-5, atol=1e-7)


def test_the_variance_of_counts_is_that_of_draws():
    law = operators.PoissonNoise(9.0)
    clean = torch.tensor([-0.8, -0.3, 0.2, 0.9], dtype=torch.float64)
    drawn = law(clean.expand(40000, 4), seed=3)
    torch.testing.assert_close(drawn.var(0), law.variance(clean), rtol=0.04, atol=0)
    dark = law.variance(torch.tensor([-1.0, -3.0], dtype=torch.float64))
    assert (dark > 0).all() and dark[0] == dark[1]
