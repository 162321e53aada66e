"""Law 5: posteriors that are known are matched; where a method is exact only in part, that part is."""

import math

import pytest
import torch

import suffuse as sf
from suffuse import grids, inverse, operators, oracle, samplers, schedules

from .methods import MASK, METHODS, SHAPE, WINDOW, gaussian, mixture

SIGMA, LINEAR = 0.3, schedules.Linear()
D = int(torch.Size(SHAPE).numel())


def _dense(rows=5, seed=9):
    return operators.Matrix(sf.noise((rows, D), seed=seed, dtype=torch.float64) / D**0.5, SHAPE)


OPERATORS = {"mask": MASK, "downsample": WINDOW, "blur": operators.GaussianBlur(0.6, "zero"), "dense": _dense()}


def _measure(world, A, seed=3, sigma=SIGMA):
    """One y, and the exact posterior."""
    clean = A(world.sample(1, seed=seed))
    y = operators.GaussianNoise(sigma)(clean, seed=seed)
    return y, world.posterior(operators.matrix(A, world.shape), y.flatten(), sigma)


def _scores(x, world):
    """z scores of mean and covariance of samples against a Gaussian world, in its own axes."""
    basis = world.basis[0] if world.basis is not None else torch.eye(D, dtype=torch.float64)
    axes = basis / world.vars[0].sqrt()
    white = (x.flatten(1) - world.flat[0]) @ axes
    n = len(white)
    cov = white.T @ white / n - torch.eye(D, dtype=torch.float64)
    return white.mean(0) * n**0.5, cov * n**0.5 / (1 + torch.eye(D, dtype=torch.float64)).sqrt()


@pytest.mark.parametrize(
    ("kind", "name"), [("mask", "linear"), ("downsample", "vp"), ("blur", "ve"), ("dense", "linear"), ("dense", "vp")]
)
def test_guided_beliefs_are_those_of_the_exact_posterior(kind, name):
    """MMPS on any Gaussian, PiGDM on an isotropic one: E[x0 | x_t, y] at every noise level, to rounding."""
    A, schedule = OPERATORS[kind], {"linear": schedules.Linear(), "vp": schedules.VP(), "ve": schedules.VE()}[name]
    for world, make in (
        (gaussian(), lambda w, y: inverse.mmps(w, A, y, SIGMA, iterations=60, tolerance=1e-12)),
        (gaussian(isotropic=True), lambda w, y: inverse.pigdm(w, A, y, SIGMA, spread=0.7)),
    ):
        world = world.on(schedule)
        y, posterior = _measure(world, A)
        guided = make(world, y)
        for t in (0.05, 0.4, 0.9):
            alpha, sigma = schedule(t)
            x = alpha * world.sample(4, seed=1) + sigma * sf.noise((4, *SHAPE), seed=2, dtype=torch.float64)
            got, want = guided(x, t), posterior(x, t)
            torch.testing.assert_close(got.x0, want.x0, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(got.eps, want.eps, rtol=1e-5, atol=1e-5)
            by_row = guided(x, torch.full((4,), t, dtype=torch.float64))
            torch.testing.assert_close(by_row.x0, got.x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("A", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("method", ["pigdm", "mmps"])
def test_linear_gaussian_posteriors_are_matched_in_mean_and_covariance(method, A):
    n = 2000
    world = gaussian(isotropic=method == "pigdm")
    y, posterior = _measure(world, A)
    guided = (
        inverse.pigdm(world, A, y, SIGMA, spread=0.7)
        if method == "pigdm"
        else inverse.mmps(world, A, y, SIGMA, iterations=12, tolerance=1e-8)
    )
    x = sf.sample(guided, sf.noise((n, *SHAPE), seed=11, dtype=torch.float64), steps=24)
    mean, cov = _scores(x, posterior)
    assert mean.abs().max() < 4.5, mean
    assert cov.abs().max() < 4.5, cov
    assert (mean.square().sum() + cov.triu().square().sum()) / (D + D * (D + 1) / 2) < 1.6, "all of them together"


@pytest.mark.parametrize("rows", [False, True], ids=["number", "by row"])
@pytest.mark.parametrize("A", [MASK, operators.Rotation(30, SHAPE[1:])], ids=["mask", "rotation"])
def test_at_the_data_nothing_is_guessed(A, rows):
    """At t = 0 x0 is x, whatever a noisy y says; without noise, it is what DDNM makes of it."""
    world, x = gaussian(), sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)
    y, time = A(world.sample(3, seed=1)), torch.tensor([0.0, 0.4, 0.0]).double()
    t = time if rows else 0.0
    at = time == 0 if rows else slice(None)
    for method in (inverse.pigdm, inverse.diffpir):
        torch.testing.assert_close(method(world, A, y, 0.3)(x, t).x0[at], x[at])
        torch.testing.assert_close(method(world, A, y, 0.0)(x, t).x0[at], inverse.ddnm(world, A, y)(x, t).x0[at])
    torch.testing.assert_close(inverse.mmps(world, A, y, 0.3)(x, t).x0[at], x[at])


def test_the_noise_at_the_start_is_no_special_case():
    """At t = 1 alpha is 0 and no gradient is left; what is believed there is the limit of what is believed before."""
    world = gaussian()
    y, posterior = _measure(world, MASK)
    x = sf.noise((3, *SHAPE), seed=1, dtype=torch.float64)
    guided = inverse.mmps(world, MASK, y, SIGMA, iterations=60, tolerance=1e-12)
    torch.testing.assert_close(guided(x, 1.0).x0, posterior(x, 1.0).x0, rtol=0, atol=5e-3)


@pytest.mark.parametrize("method", ["ddrm", "ddnm", "repaint", "ddnm_plus", "blended"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_pixels_of_a_noiseless_mask_are_kept_to_the_last_bit(method, dtype):
    world = mixture()
    y = MASK(world.sample(4, seed=3)).to(dtype)
    x = METHODS[method](world, MASK, y, 0.0, sf.noise((4, *SHAPE), seed=1, dtype=dtype), 2, 0)
    assert torch.equal(MASK(x), y)
    assert (x - y)[:, ~MASK.known.expand(SHAPE)].abs().min() > 1e-6
    if method == "ddnm":  # also where what the model believes is far from y
        assert torch.equal(MASK(inverse.ddnm(world, MASK, y)(x + 3, 0.9).x0), y)


@pytest.mark.parametrize("make", [inverse.ddrm, inverse.ddnm_plus], ids=["ddrm", "ddnm_plus"])
@pytest.mark.parametrize(
    "A", [OPERATORS["mask"], OPERATORS["downsample"], OPERATORS["dense"]], ids=["mask", "downsample", "dense"]
)
def test_spectral_steps_keep_the_noise_level(make, A):
    """On data that are one point every state has noise sigma_t^2 in all directions, y's noise included."""
    n = 6000
    point = oracle.Gaussian(gaussian().mean(), 1e-14)
    clean = A(point.sample(1, seed=0)).expand(n, *A(point.sample(1, seed=0)).shape[1:])
    y = operators.GaussianNoise(SIGMA)(clean.contiguous(), seed=3)
    noise = sf.noise((n, *SHAPE), seed=1, dtype=torch.float64)
    once = make is inverse.ddnm_plus  # one step: later its state holds the same noise of y twice
    how = (
        {"grid": [0.5, 0.3], "start": (point.mean().expand_as(noise), 0.5)} if once else {"grid": grids.flow(LINEAR, 8)}
    )
    for step in sf.run(point, noise, sampler=make(A, y, SIGMA), seed=2, **how):
        alpha, sigma = LINEAR(step.s)
        if sigma == 0:
            break
        white = (step.x - alpha * point.mean()).flatten(1) / sigma
        bound = 4.8 / n**0.5
        assert white.mean(0).abs().max() < bound, step.s
        cov = white.T @ white / n - torch.eye(D, dtype=torch.float64)
        assert (cov / (1 + torch.eye(D, dtype=torch.float64)).sqrt()).abs().max() < bound, step.s


def test_particles_err_less_the_more_they_are():
    """TDS: the mean's squared error falls like 1/K, and with many particles a two-sided posterior has its weights."""
    world = oracle.Mixture([0.5, 0.5], torch.tensor([[1.0, 0.4], [-1.0, 0.4]]).double(), torch.tensor([0.05, 0.05]))
    A = operators.Matrix(torch.tensor([[0.3, 1.0]]).double(), (2,))
    y = torch.tensor([[0.55]]).double()
    posterior = world.posterior(A.M, y[0], 0.3)
    groups, errors = 64, {}
    for k in (8, 128):
        noise = sf.noise((groups * k, 2), seed=4, dtype=torch.float64)
        x = inverse.tds(world, A, y.expand(groups, 1), noise, 0.3, steps=30, seed=7)
        means = x.reshape(groups, k, 2).mean(1) - posterior.mean()
        errors[k] = means.square().sum(1).mean().item()
    slope = math.log(errors[8] / errors[128]) / math.log(16)
    assert 0.8 < slope < 1.2, errors
    assert errors[128] < 1.6 * posterior.cov().diagonal().sum().item() / 128, "hardly worse than exact draws"
    right = (x[:, 0] > 0).double().mean().item()
    exact = (posterior.sample(100000, seed=1)[:, 0] > 0).double().mean().item()
    assert abs(right - exact) < 0.03 and 0.55 < exact < 0.95


def test_weights_pay_back_what_the_proposal_pushed():
    """TDS where y is sharp and the push strong: without the proposal's ratio y counts twice (8 times the error)."""
    world = oracle.Mixture([0.5, 0.5], torch.tensor([[1.0, 0.4], [-1.0, 0.4]]).double(), torch.tensor([0.05, 0.05]))
    A, y, k, groups = (
        operators.Matrix(torch.tensor([[0.3, 1.0]]).double(), (2,)),
        torch.tensor([[0.6]]).double(),
        64,
        32,
    )
    posterior = world.posterior(A.M, y[0], 0.15)
    noise = sf.noise((groups * k, 2), seed=4, dtype=torch.float64)
    x = inverse.tds(world, A, y.expand(groups, 1), noise, 0.15, steps=30, seed=7)
    error = (x.reshape(groups, k, 2).mean(1) - posterior.mean()).square().sum(1).mean()
    assert error < 2.5 * posterior.cov().trace() / k, "hardly worse than exact draws"


def test_split_gibbs_keeps_the_posterior_of_its_own_noise():
    """PnP-DM at a constant rho: y's noise is raised to sigma^2 + rho^2 A A.T; exact draws of that posterior stay so."""
    world, n, rho = gaussian(), 1200, 0.5
    y, _ = _measure(world, MASK)
    known = MASK.known.flatten()
    M = operators.matrix(MASK, SHAPE)[known]
    target = world.posterior(M, y.flatten()[known], math.hypot(SIGMA, rho))
    x = inverse.pnpdm(world, MASK, y, target.sample(n, seed=5), SIGMA, rounds=2, inner=60, high=rho, low=rho, seed=6)
    mean, cov = _scores(x, target)
    assert mean.abs().max() < 4.5
    assert cov.abs().max() < 5, "runs of 60 steps leave some percent of the variance"


def test_daps_meets_an_isotropic_posterior_nearly():
    """Its own bias is in the spread, which is too large; the mean is met within a fifth of a standard deviation."""
    world, n = gaussian(isotropic=True), 1500
    y, posterior = _measure(world, WINDOW)
    noise = sf.noise((n, *SHAPE), seed=5, dtype=torch.float64)
    x = inverse.daps(world, WINDOW, y, noise, SIGMA, steps=20, inner=4, spread=0.7, seed=6)
    mean, cov = _scores(x, posterior)
    assert (mean / n**0.5).abs().max() < 0.2
    excess = (cov / n**0.5).diagonal() * 2**0.5
    assert 0 < excess.mean() < 0.7 and excess.max() < 1, excess


def test_langevin_draws_agree_with_exact_ones():
    """The same measurement as a function that hides that it is linear."""
    world, n = gaussian(isotropic=True), 1000
    y, _ = _measure(world, MASK)
    noise = sf.noise((n, *SHAPE), seed=5, dtype=torch.float64)
    hidden = operators.from_function(MASK, linear=False)
    a, b = (
        inverse.pnpdm(world, A, y, noise, SIGMA, rounds=2, inner=8, high=0.4, low=0.4, langevin=100, seed=6)
        for A in (MASK, hidden)
    )
    spread = a.std(0)
    assert ((a.mean(0) - b.mean(0)) / spread).abs().max() < 5 * (2 / n) ** 0.5
    assert (b.std(0) / spread - 1).abs().max() < 0.12, "steps of a tenth overstate the variance by about 5 %"


def test_dps_is_its_step():
    """A step of ddim(eta) moves by -zeta times the numeric gradient of the error's norm, row by row."""
    world, A, zeta = mixture(), operators.from_function(torch.sin, linear=False), 0.4
    y = A(world.sample(3, seed=1))
    x = sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)

    def norm(x):
        return (y - A(world(x, 0.7).x0)).flatten(1).norm(dim=1)

    h, slope = 1e-6, torch.zeros_like(x)
    for i in range(D):
        e = torch.zeros(D, dtype=torch.float64)
        e[i] = h
        e = e.reshape(SHAPE)
        slope.reshape(3, D)[:, i] = (norm(x + e) - norm(x - e)) / (2 * h)
    for eta in (0.0, 1.0):
        plan = samplers.ddim(eta=eta).plan(world.schedule, [0.7, 0.5])
        moved = [
            plan(m, x, sf.BrownianPath(x.shape, 0, dtype=x.dtype))
            for m in (inverse.dps(world, A, y, zeta=zeta, eta=eta), world)
        ]
        torch.testing.assert_close(moved[0] - moved[1], -zeta * slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [inverse.dps, inverse.mcg, inverse.flowchef])
@pytest.mark.parametrize("name", ["default", "unipc", "heun", "rk4"])
def test_pushes_are_the_same_with_stages_and_correctors(make, name):
    """What a step's end is asked again for is pushed by the same step: with small steps all samplers end alike."""
    world, y = gaussian(), MASK(gaussian().sample(2, seed=3))
    noise = sf.noise((2, *SHAPE), seed=1, dtype=torch.float64)
    pushed = make(world, MASK, y, eta=0.0, **({"scale": 0.01} if make is inverse.flowchef else {"zeta": 0.01}))
    rule = None if name == "default" else samplers.rules()[name]
    grid = grids.uniform(world.schedule, 60)
    want = sf.sample(pushed, noise, sampler=samplers.ddim, grid=grid)
    got = sf.sample(pushed, noise, sampler=rule, grid=grid)
    alone = sf.sample(inverse.ddnm(world, MASK, y) if make is inverse.mcg else world, noise, sampler=rule, grid=grid)
    assert (got - want).norm() < 0.4 * (got - alone).norm(), ((got - want).norm(), (got - alone).norm())


def test_flowchef_is_its_step():
    world, y = mixture(), torch.zeros(1, *SHAPE).double()
    x = sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)
    plan = samplers.ddim.plan(world.schedule, [0.7, 0.5])
    moved = plan(inverse.flowchef(world, MASK, y, scale=0.2), x) - plan(world, x)
    torch.testing.assert_close(moved, 0.2 * MASK(y - world(x, 0.7).x0))


def test_diffpir_is_at_the_minimum_it_names():
    world, A, lam, t = mixture(), OPERATORS["dense"], 2.0, 0.6
    y = A(world.sample(3, seed=1))
    x = sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)
    u = inverse.diffpir(world, A, y, 0.2, lam=lam)(x, t).x0.requires_grad_()
    alpha, sigma = world.schedule(t)
    loss = (y - A(u)).square().sum() / (2 * 0.2**2) + lam * (u - world(x, t).x0).square().sum() / (
        2 * (sigma / alpha) ** 2
    )
    (slope,) = torch.autograd.grad(loss, u)
    assert slope.abs().max() < 1e-9


@pytest.mark.parametrize("make", [inverse.ddnm, lambda *a: inverse.mcg(*a, zeta=0.3)], ids=["ddnm", "mcg"])
def test_projections_meet_a_noiseless_measurement(make):
    world = mixture()
    y = WINDOW(world.sample(3, seed=1))
    x = sf.noise((3, *SHAPE), seed=2, dtype=torch.float64)
    x0 = make(world, WINDOW, y)(x, 0.6, to=0.5).x0
    torch.testing.assert_close(WINDOW(x0), y)
    assert (x0 - WINDOW.pinv(y)).abs().max() > 0.1, "what is not measured is the model's"


def test_repaint_fills_like_its_surroundings_the_more_it_travels():
    """A strongly correlated pair, one measured: the other follows it, closer with more repeats."""
    world = oracle.Gaussian(torch.zeros(1, 1, 2).double(), torch.tensor([[1.0, 0.95], [0.95, 1.0]]).double())
    A = operators.Mask(torch.tensor([[True, False]]))
    y = torch.tensor([[[[1.5, 0.0]]]]).double()
    noise = sf.noise((600, 1, 1, 2), seed=1, dtype=torch.float64)
    off = [
        abs(inverse.repaint(world, A, y, noise, steps=20, jump=5, repeats=r, seed=2)[..., 1].mean().item() - 0.95 * 1.5)
        for r in (1, 6)
    ]
    assert off[1] < 0.6 * off[0] and off[1] < 0.25, off


def test_red_diff_explains_what_is_measured_and_takes_the_likeliest_for_the_rest():
    world = oracle.Gaussian(gaussian().mean(), 0.04)
    y = MASK(world.sample(2, seed=1))
    mu = inverse.reddiff(world, MASK, y, torch.zeros(2, *SHAPE).double(), steps=400, rate=0.01, weight=0.1, seed=3)
    known = MASK.known.expand(SHAPE)
    assert (mu - world.mean())[:, ~known].abs().max() < 0.1
    assert (mu - y)[:, known].abs().max() < 0.1


def test_gradients_through_a_measurement_that_is_not_linear():
    """The push's own slope counts: d x0'/d x is that of differences."""
    world, A = mixture(), operators.from_function(torch.sin, linear=False)
    y, x = A(world.sample(2, seed=1)), sf.noise((2, *SHAPE), seed=2, dtype=torch.float64).requires_grad_()
    way, d = sf.noise((2, *SHAPE), seed=3, dtype=torch.float64), sf.noise((2, *SHAPE), seed=4, dtype=torch.float64)

    def end(x):
        guided = inverse.dps(world, A, y, zeta=0.5)
        made = sf.sample(guided, x, sampler=samplers.ddim(eta=1.0), steps=4, seed=5, grad=True)
        return (made * way).sum()

    (slope,) = torch.autograd.grad(end(x), x)
    h = 1e-5
    wanted = (end(x.detach() + h * d) - end(x.detach() - h * d)) / (2 * h)
    torch.testing.assert_close((slope * d).sum(), wanted, rtol=1e-5, atol=1e-8)


def test_gradients_through_a_guided_run_are_those_of_differences():
    world = gaussian()
    y, _ = _measure(world, MASK)
    guided = inverse.pigdm(world, MASK, y, SIGMA)
    x = sf.noise((1, *SHAPE), seed=2, dtype=torch.float64).requires_grad_()
    d, h = sf.noise((1, *SHAPE), seed=3, dtype=torch.float64), 1e-5

    def end(x):
        return sf.sample(guided, x, sampler=samplers.ddim, grid=[0.9, 0.5, 0.2, 0.0], grad=True).square().sum()

    (slope,) = torch.autograd.grad(end(x), x)
    numeric = (end(x + h * d) - end(x - h * d)) / (2 * h)
    assert (slope * d).sum().item() == pytest.approx(numeric.item(), rel=1e-5)
    assert not guided(x.detach(), 0.5).x0.requires_grad
