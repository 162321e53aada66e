"""Score-distillation losses have the gradient that is known exactly on average; SDS collapses, and VSD does not."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from suffuse import Denoiser, adapters, fields, guide, losses, metrics, noise, oracle, samplers, schedules
from suffuse.losses import distillation, weights
from suffuse.nets import MLP

VP = schedules.VP()
WORLDS = {
    "gaussian": oracle.Gaussian([0.5], 0.4, schedule=VP),
    "mixture": oracle.Mixture([0.3, 0.7], [[-1.2], [1.0]], [0.1, 0.3], schedule=VP),
}
TOLD = {
    "gaussian": WORLDS["mixture"],  # whose classes are one Gaussian each
    "mixture": oracle.Mixture(
        [0.3, 0.2, 0.2, 0.3], [[-1.4], [-0.4], [0.2], [1.2]], [0.1, 0.05, 0.1, 0.3], labels=[0, 1, 0, 1], schedule=VP
    ),
}
POINTS = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64)
LOW, HIGH = 0.1, 0.7


def eps_of(world, x, t):
    """By way of the score, which no loss asks for."""
    return -world.schedule(t, like=x)[1] * world.score(x, t)


def expected(g, points=POINTS):
    """E over t uniform in [LOW, HIGH] and eps ~ N(0, 1) of g(x, t, eps) by Gauss quadrature, at each point."""
    roots, share = np.polynomial.hermite_e.hermegauss(80)
    times, length = np.polynomial.legendre.leggauss(40)
    times, share, length = (torch.as_tensor(v) for v in (times, share, length))
    t = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * times
    x, t, eps = torch.meshgrid(points, t, torch.as_tensor(roots), indexing="ij")
    value = g(x.reshape(-1, 1), t.reshape(-1), eps.reshape(-1, 1)).reshape(x.shape)
    return (value * length[:, None] * share / share.sum()).sum((1, 2)) / 2


def found(loss, n=150_000):
    """The mean gradient of a loss of images, at each point."""
    x = POINTS.repeat_interleave(n)[:, None].requires_grad_()
    torch.manual_seed(0)
    (grad,) = torch.autograd.grad(loss(x).sum(), x)
    return grad.reshape(len(POINTS), n).mean(1)


def sigma2(t):
    return VP(t)[1].square()[:, None]  # DreamFusion's weight


def noised(x, t, eps):
    alpha, sigma = VP(t, like=x)
    return alpha * x + sigma * eps


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0.01 * b.abs().max().item())


WINDOW = distillation.window(LOW, HIGH)


class TestExpectedGradients:
    @pytest.mark.parametrize("name", WORLDS)
    def test_sds(self, name):
        world = WORLDS[name]
        truth = expected(lambda x, t, eps: sigma2(t) * eps_of(world, noised(x, t, eps), t))
        close(found(lambda x: losses.sds(world, x, times=WINDOW)), truth)

    @pytest.mark.parametrize("name", WORLDS)
    def test_vsd(self, name):
        world, own = WORLDS[name], oracle.Gaussian([-0.2], 0.8, schedule=VP)

        def g(x, t, eps):
            x = noised(x, t, eps)
            return eps_of(world, x, t) - eps_of(own, x, t)

        close(found(lambda x: losses.vsd(world, x, own, times=WINDOW, weight=weights.v)), expected(g))

    def test_vsd_has_no_gradient_where_the_particles_are_the_data(self):
        world = WORLDS["mixture"]
        x = world.sample(2000, seed=0).double().requires_grad_()
        (grad,) = torch.autograd.grad(losses.vsd(world, x, world).sum(), x)
        assert (grad == 0).all()
        (grad,) = torch.autograd.grad(losses.sds(world, x).sum(), x)
        assert grad.abs().mean() > 0.05

    @pytest.mark.parametrize("name", TOLD)
    def test_csd(self, name):
        pos, neg = TOLD[name].given(label=1), TOLD[name].given(label=0)

        def g(x, t, eps):
            x = noised(x, t, eps)
            return sigma2(t) * (eps_of(pos, x, t) - eps_of(neg, x, t))

        close(found(lambda x: losses.csd(pos, neg, x, times=WINDOW)), expected(g))

    @pytest.mark.parametrize("name", TOLD)
    def test_dmd(self, name):
        """The slope in x of log(own density / data's) under noise: what a KL falls along."""
        real, own = TOLD[name].given(label=1), TOLD[name].given(label=0)

        def g(x, t, eps):
            noisy = noised(x, t, eps)
            return VP(t, like=x)[0] * (own.score(noisy, t) - real.score(noisy, t))

        matching = functools.partial(losses.fewstep.distribution_matching, real, own, weight="kl", times=WINDOW)
        close(found(matching), expected(g))

    def test_sds_of_a_guided_model_is_sds_and_csd(self):
        world, w = WORLDS["mixture"], 5.0
        pos = world.given(label=1)
        both = found(lambda x: losses.sds(guide(pos, world, w), x, times=WINDOW))
        parts = found(lambda x: losses.sds(world, x, times=WINDOW))
        parts = parts + w * found(lambda x: losses.csd(pos, world, x, times=WINDOW))
        close(both, parts)

    @pytest.mark.parametrize("name", TOLD)
    def test_dds(self, name):
        world = TOLD[name]
        target, source, original = world.given(label=1), world.given(label=0), torch.tensor([[-0.8]]).double()

        def g(x, t, eps):
            before = noised(original.expand_as(x), t, eps)
            return sigma2(t) * (eps_of(target, noised(x, t, eps), t) - eps_of(source, before, t))

        close(found(lambda x: losses.dds(target, x, source, original.expand_as(x), times=WINDOW)), expected(g))

    @pytest.mark.parametrize("name", TOLD)
    def test_pds(self, name):
        """The truth by Tweedie's formula and the coefficients of a step of ddpm, one time after the other."""
        world, t, gap = TOLD[name], 0.5, 0.05
        target, source, original = world.given(label=1), world.given(label=0), torch.tensor([[-0.8]]).double()
        (step,) = [row.terms for row in samplers.ddpm.plan(VP, [t, t - gap]).rows if row.terms]
        alpha, sigma = VP(t)

        def x0(model, x):
            x_t = alpha * x + sigma * self.nodes
            return (x_t + sigma**2 * model.score(x_t, t)) / alpha

        def latent(model, x):  # without the noise of x_s, which both have
            mean = step.get(("x", 0), 0.0) * (alpha * x + sigma * self.nodes) + step["x0", 0] * x0(model, x)
            return (VP(t - gap)[0] * x - mean) / step["z", 0]

        truth = [((latent(target, x) - latent(source, original))[:, 0] * self.share).sum() for x in POINTS[:, None]]
        at = lambda n, device: torch.full((n,), t, dtype=torch.float64)  # noqa: E731
        got = found(lambda x: losses.pds(target, x, source, original.expand_as(x), times=at, gap=gap, weight=weights.v))
        close(got, torch.stack(truth))

    nodes, share = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(100))
    nodes, share = nodes[:, None], share / share.sum()

    @pytest.mark.parametrize(
        ("schedule", "c", "m"), [(VP, 0.4, 0.5), (schedules.Linear(), 0.7, -0.3)], ids=["its own", "by another"]
    )
    def test_sdi_is_deterministic_and_meets_the_exact_inversion(self, schedule, c, m):
        world, by, t = (*(oracle.Gaussian([a], b, schedule=schedule) for a, b in ((0.5, 0.4), (m, c))), 0.4)
        x = POINTS[:, None].clone().requires_grad_()
        inverter = None if c == 0.4 else by
        (grad,) = torch.autograd.grad(losses.sdi(world, x, t=t, inverter=inverter, steps=400).sum(), x)
        alpha, sigma = schedule(t)
        x_t = alpha * m + (alpha**2 + sigma**2 / c) ** 0.5 * (POINTS - m)  # along the flow of a Gaussian
        kappa = (x_t - alpha * POINTS) / sigma
        eps = sigma * (x_t - alpha * 0.5) / (alpha**2 * 0.4 + sigma**2)
        close(grad[:, 0], sigma**2 / (alpha**2 + sigma**2) * (eps - kappa))

    @pytest.mark.parametrize("name", ["sds", "dds", "pds"])
    def test_what_is_there_already_is_not_pushed_at_all(self, name):
        """Not on average alone: all data at one point, where the noise is known; an edit to what the image shows."""
        world, point = WORLDS["mixture"], oracle.Gaussian([0.5], 1e-12, schedule=VP)
        x = (torch.full((500, 1), 0.5).double() if name == "sds" else world.sample(500, seed=0)).requires_grad_()
        loss = {
            "sds": lambda: losses.sds(point, x),
            "dds": lambda: losses.dds(world, x, world, x.detach()),
            "pds": lambda: losses.pds(world, x, world, x.detach()),
        }[name]()
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert grad.abs().max() < 1e-6


def test_pds_is_finite_at_the_smallest_times():
    """The step goes down however close to the data it begins."""
    x = WORLDS["mixture"].sample(50, seed=0).requires_grad_()
    loss = losses.pds(WORLDS["mixture"], x, WORLDS["gaussian"], x.detach(), times=distillation.window(1e-4, 0.03))
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert grad.isfinite().all()


def test_a_stochastic_latent_is_the_noise_that_ddpm_drew():
    world, t, s = WORLDS["mixture"], 0.5, 0.4
    x, eps, z = (noise((50, 1), seed=k, dtype=torch.float64) for k in range(3))
    (alpha, sigma), (c, d) = VP(t), VP(s)
    x_t = alpha * x + sigma * eps
    x_s = samplers.combine([1.0], [x_t])
    for step in samplers.ddpm.plan(VP, [t, s]).run(world, x_t, _Given(z)):
        x_s = step.x
    at = lambda v: torch.full((50,), v, dtype=torch.float64)  # noqa: E731
    found = distillation.stochastic_latent(world, x, at(t), at(s), eps, (x_s - c * x) / d)
    torch.testing.assert_close(found, z)


class _Given:
    """A path whose increments are given."""

    def __init__(self, z):
        self.z = z

    def increment(self, a, b):
        return self.z


def test_gradients_go_through_a_field_and_not_through_the_model():
    net = MLP(12, width=8, depth=1)
    nn.init.normal_(net.out.weight)
    flat = Denoiser(lambda x, t: net(x.flatten(1), t).reshape(x.shape), schedules.Linear())
    field = fields.Siren((3, 2, 2), width=8, depth=1)
    theta = field.start(4, seed=0).requires_grad_()
    image = field(theta)
    torch.manual_seed(0)
    losses.sds(flat, image).sum().backward()
    assert all(p.grad is None for p in net.parameters())
    pixels = image.detach().requires_grad_()
    torch.manual_seed(0)
    (g,) = torch.autograd.grad(losses.sds(flat, pixels).sum(), pixels)
    (through,) = torch.autograd.grad(field(theta), theta, g)
    torch.testing.assert_close(theta.grad, through)


RING = oracle.Mixture(torch.ones(4), [[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]], 0.3)


class Trained(nn.Module):
    """A network that has learned the ring exactly: its velocity, and layers that add nothing to it yet."""

    def __init__(self):
        super().__init__()
        self.layers = MLP(2, width=64, depth=1)

    def forward(self, x, t):
        p = RING(x, t)
        return p.eps - p.x0 + self.layers(x, t)


class TestCollapse:
    """256 particles towards a ring of four wide modes: by SDS, and by VSD with a network of their own or a LoRA."""

    world = RING
    steps, n = 250, 256

    def distance(self, x):
        real = self.world.sample(4 * self.n, seed=9)
        return metrics.sliced_wasserstein(x.double(), real.double(), features="points").value

    def start(self):
        return 0.5 * noise((self.n, 2), seed=0)

    def test_sds_collapses_and_vsd_does_not(self):
        x = distillation.descend(lambda x, share: losses.sds(self.world, x), self.start(), steps=self.steps, lr=0.1)
        collapsed, floor = self.distance(x), self.distance(self.world.sample(self.n, seed=3))
        assert collapsed > 0.4
        torch.manual_seed(0)
        trained = Denoiser(Trained(), self.world.schedule)
        particles = {
            "network": Denoiser(MLP(2, width=64, depth=1), self.world.schedule),
            "lora": adapters.lora(trained, lambda name, module: True, rank=8),
        }
        base = [p.clone() for p in trained.net.parameters()]
        for name, own in particles.items():
            loss = losses.VSD(self.world, own, lr=3e-3)
            spread = self.distance(distillation.descend(loss, self.start(), steps=self.steps, lr=0.1))
            print(f"sliced W2: SDS {collapsed:.3f}, VSD by {name} {spread:.3f}, exact samples {floor:.3f}")
            assert spread <= collapsed / 4
        assert all(torch.equal(a, b) for a, b in zip(base, trained.net.parameters(), strict=True))


def test_a_fresh_lora_pushes_nowhere_and_learns_the_score_of_the_particles():
    """VSD's gradient begins at 0, the model's own, and ends at that of particles whose score is known."""
    torch.manual_seed(0)
    model = Denoiser(Trained(), RING.schedule)
    own = adapters.lora(model, lambda name, module: True, rank=16)
    x = (torch.tensor([1.0, -0.5]) + 0.4 * noise((1000, 2), seed=0)).requires_grad_()
    (grad,) = torch.autograd.grad(losses.vsd(model, x, own).sum(), x)
    assert (grad == 0).all()
    loss = losses.VSD(model, own, lr=1e-2, turns=150)

    def mean(value):  # at few points, on the average over noise: of equal parts of the particles
        torch.manual_seed(1)
        at = torch.tensor([[2.0, -0.5], [0.0, -0.5]]).repeat_interleave(8000, 0).requires_grad_()
        (g,) = torch.autograd.grad(value(at).sum(), at)
        return g.reshape(2, -1, 2).mean(1)

    loss(x.detach())
    exact = oracle.Gaussian([1.0, -0.5], 0.16)
    found = mean(lambda at: losses.vsd(model, at, own))
    truth = mean(lambda at: losses.vsd(RING, at, exact))
    print(found, truth)
    assert truth.norm() > 0.2 and (found - truth).norm() < 0.2 * truth.norm()


def test_vsd_lets_its_times_follow_the_share():
    asked = []

    def times(share):
        asked.append(share)
        return distillation.annealed(share)

    loss = losses.VSD(RING, Denoiser(MLP(2, width=8, depth=1), RING.schedule), times=times, turns=2)
    distillation.descend(loss, torch.zeros(8, 2), steps=4)
    assert asked == [0, 0.25, 0.5, 0.75]


def test_annealing_brings_the_highest_time_down():
    tops = []
    for share in (0.0, 0.25, 1.0):
        times = distillation.annealed(share, low=0.1, high=0.9, last=0.3)(4000, torch.device("cpu"))
        assert times.min() == pytest.approx(0.1, abs=1e-3)
        tops.append(times.max().item())
    assert tops == pytest.approx([0.9, 0.6, 0.3], abs=1e-3)


def test_descent_is_a_function_of_the_seed_and_finds_the_mode():
    world = oracle.Gaussian(torch.tensor([0.7, -0.2]), 0.5)
    before = torch.get_rng_state()
    runs = [
        distillation.descend(lambda x, share: losses.sds(world, x), torch.zeros(64, 2), steps=150, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(runs[0].mean(0), torch.tensor([0.7, -0.2]), rtol=0, atol=0.05)


X = torch.zeros(2, 1)
G = WORLDS["gaussian"]
SMALL = Denoiser(MLP(1, width=8, depth=1), VP, "v")
FROZEN = Denoiser(MLP(1, width=8, depth=1).requires_grad_(False), VP, "v")
MISUSE = {
    "vsd trains the model": (
        lambda: losses.VSD(guide(SMALL, SMALL, 2.0), SMALL),
        r"would train the model's own weights: give sf.adapters.lora\(model\)",
    ),
    "vsd trains nothing": (lambda: losses.VSD(SMALL, FROZEN), "has nothing to train"),
    "vsd of two schedules": (
        lambda: losses.VSD(G, Denoiser(SMALL.net, schedules.Linear())),
        r"the particles' denoiser lives on Linear\(\)",
    ),
    "turns": (lambda: losses.VSD(G, SMALL, turns=0), "turns must be at least 1, got 0"),
    "csd": (lambda: losses.csd(G, oracle.Gaussian([0.0], 1.0), X), r"lives on VP\(.*, the other on Linear"),
    "vsd": (lambda: losses.vsd(G, X, oracle.Gaussian([0.0], 1.0)), r"the particles' denoiser lives on Linear\(\)"),
    "dds shapes": (lambda: losses.dds(G, X, G, X[:1]), r"has shape \(2, 1\), the one it is edited from \(1, 1\)"),
    "pds schedules": (lambda: losses.pds(G, X, oracle.Gaussian([0.0], 1.0), X), "the source on Linear"),
    "gap": (lambda: losses.pds(G, X, G, X, gap=0.0), "gap must be a positive step of time, got 0"),
    "t": (lambda: losses.sdi(G, X, t=1.0), r"t must be in \(0, 1\), got 1"),
    "sdi steps": (lambda: losses.sdi(G, X, t=0.5, steps=0), "steps must be at least 1, got 0"),
    "window": (lambda: distillation.window(0.5, 0.4), "0 < low <= high <= 1, got 0.5 and 0.4"),
    "share": (lambda: distillation.annealed(1.5), r"share must be in \[0, 1\], got 1.5"),
    "steps": (lambda: distillation.descend(lambda x, s: x, X, steps=0), "steps must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        act()
