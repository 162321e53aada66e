"""Learned variances, uncertainty weights and score matching reach the optimum that is known in closed form."""

import functools

import pytest
import torch
from torch import nn

from suffuse import Denoiser, fit, losses, noise, oracle, sample, samplers, schedules
from suffuse.nets import MLP
from tests.laws.test_round_trip import Wrapped

C = 0.6  # variance of the data


class Variance(nn.Module):
    """The exact eps of N(0, C), beside a variance that is one number a noise level."""

    def __init__(self, schedule, shift=0.0):
        super().__init__()
        self.exact = oracle.Gaussian([0.0], C, schedule=schedule)
        self.v = nn.Parameter(torch.zeros(()))
        self.shift = nn.Parameter(torch.tensor(shift))

    def forward(self, x, t):
        return torch.cat([self.exact(x, t).eps + self.shift, self.v.expand(x.shape)], 1)


class TestHybrid:
    schedule = schedules.Cosine()

    def _batch(self, n=2000):
        return {"x": C**0.5 * noise((n, 1), seed=0)}

    @pytest.mark.parametrize(("level", "steps"), [(0.3, 20), (0.6, 20), (0.9, 8), (0.6, 1000)])
    def test_the_variance_learned_is_the_true_one_of_the_step_back(self, level, steps):
        net = Variance(self.schedule)
        model = Denoiser(net, self.schedule, "eps", variance="range")
        times = lambda n, device: torch.full((n,), level)  # noqa: E731
        optimizer = torch.optim.Adam([net.v], lr=0.1)
        for step in range(120):
            torch.manual_seed(step)
            loss = losses.hybrid(model, self._batch(), times=times, steps=steps, vlb=1.0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        step = samplers.learned.Transition(self.schedule, level, level - 1 / steps)
        with torch.no_grad():
            learned = step.log_var(model(torch.zeros(1, 1), level)).exp().item()
        # N(0, C) is Gaussian at every time, so p(x_b | x_a) is what joint normality makes it
        a, b = self.schedule(level), self.schedule(level - 1 / steps)
        va, vb = (p[0] ** 2 * C + p[1] ** 2 for p in (a, b))
        cov = a[0] / b[0] * vb
        assert learned == pytest.approx(vb - cov**2 / va, rel=0.01)

    def test_the_bound_teaches_the_variance_and_leaves_the_mean_alone(self):
        net = Variance(self.schedule, shift=0.3)
        model = Denoiser(net, self.schedule, "eps", variance="range")
        grads = {}
        for vlb in (0.0, 1.0):
            torch.manual_seed(0)
            net.zero_grad()
            losses.hybrid(model, self._batch(), vlb=vlb).mean().backward()
            grads[vlb] = (net.shift.grad.clone(), net.v.grad.clone())
        assert torch.equal(grads[0.0][0], grads[1.0][0]) and grads[0.0][0] != 0
        assert grads[0.0][1] == 0 and grads[1.0][1] != 0

    def test_the_first_half_is_the_plain_loss(self):
        net = Variance(self.schedule, shift=0.3)
        both = Denoiser(net, self.schedule, "eps", variance="range")
        plain = Denoiser(lambda x, t: net(x, t)[:, :1], self.schedule, "eps")
        found = []
        for model, loss in ((both, functools.partial(losses.hybrid, vlb=0.0)), (plain, losses.denoising)):
            torch.manual_seed(0)
            found.append(loss(model, self._batch(64), weight=losses.weights.v).detach())
        assert torch.equal(*found)

    def test_a_trained_network_has_a_better_bound_than_either_fixed_variance(self):
        torch.manual_seed(0)
        net = _Doubled(MLP(1, width=32, depth=2))
        model = Denoiser(net, self.schedule, "v", variance="range")
        x = 0.2 * noise((4000, 1), seed=0)  # narrow data, far from both ends of the range
        loss = functools.partial(losses.hybrid, steps=10, vlb=0.1)
        fit(loss, {"x": x}, model, steps=250, batch_size=256, lr=5e-3, progress=False, precision="float32")
        held = 0.2 * noise((4000, 1), seed=1)
        grid = [1 - k / 10 for k in range(11)]
        bound = {
            v: samplers.variational_bound(model, held, seed=0, grid=grid, variance=v).mean().item()
            for v in ("learned", "small", "large")
        }
        assert bound["learned"] > bound["small"] + 0.01 and bound["learned"] > bound["large"] + 0.01, bound

    def test_a_model_without_variance_is_refused(self):
        with pytest.raises(ValueError, match=r"needs Denoiser\(..., variance='range'\)"):
            losses.hybrid(Denoiser(MLP(1), self.schedule), self._batch())


class _Doubled(nn.Module):
    """A network for (x, and one more number each)."""

    def __init__(self, net):
        super().__init__()
        self.net, self.log_fraction = net, MLP(1, width=16, depth=1)

    def forward(self, x, t):
        return torch.cat([self.net(x, t), self.log_fraction(0 * x, t)], 1)


def test_the_uncertainty_learned_is_the_exact_loss_of_each_noise_level():
    schedule = schedules.VP()
    exact = Wrapped(oracle.Gaussian(torch.zeros(2), C, schedule=schedule), "v")
    times = functools.partial(losses.uniform_logsnr, schedule=schedule, low=-6.0, high=6.0)
    loss = losses.Uncertain(functools.partial(losses.denoising, weight=losses.weights.edm(0.5), times=times))
    x = C**0.5 * noise((2000, 2), seed=0)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for step in range(300):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 300)
        optimizer.zero_grad()
        loss(exact, {"x": x}).mean().backward()
        optimizer.step()
    logsnr = torch.linspace(-5, 5, 11)
    alpha, sigma = schedule(schedule.time(logsnr))
    left = C * sigma**2 / (alpha**2 * C + sigma**2)  # Var[x0 | x]
    truth = (left * (logsnr.exp() + 1 / 0.5**2)).log()
    with torch.no_grad():
        torch.testing.assert_close(loss.logvar(logsnr), truth, rtol=0, atol=0.05)
        torch.manual_seed(0)
        assert loss(exact, {"x": x}).mean() < losses.denoising(exact, {"x": x}, weight=losses.weights.edm(0.5)).mean()


class Linear(nn.Module):
    """The score of a Gaussian: s(x) = -P (x - m)."""

    def __init__(self, m, p):
        super().__init__()
        self.m, self.p = nn.Parameter(m), nn.Parameter(p)

    def forward(self, x):
        return -(x - self.m) @ self.p


class TestScoreMatching:
    """For Gaussian scores the optimum is maximum likelihood: the sample's own mean and inverse covariance."""

    x = noise((500, 2), seed=0, dtype=torch.float64) @ torch.tensor([[1.0, 0.4], [0.0, 0.5]]).double() + 0.3
    mean, cov = x.mean(0), torch.cov(x.T, correction=0)

    def _slope(self, loss, m, p):
        net = Linear(m, p)
        loss(net, {"x": self.x}).mean().backward()
        return torch.cat([net.m.grad.flatten(), net.p.grad.flatten()])

    def test_implicit_is_least_at_the_mean_and_inverse_covariance(self):
        there = self._slope(losses.implicit_score, self.mean, self.cov.inverse())
        torch.testing.assert_close(there, torch.zeros_like(there), rtol=0, atol=1e-12)
        off = self._slope(losses.implicit_score, self.mean + 0.1, 1.1 * self.cov.inverse())
        assert off.abs().min() > 1e-3

    def test_sliced_is_implicit_on_average_and_exactly_in_one_dimension(self):
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        exact = losses.implicit_score(net, {"x": self.x}).mean()
        sliced = losses.sliced_score(net, {"x": self.x}, slices=200).mean()
        assert sliced.item() == pytest.approx(exact.item(), abs=0.01)
        one = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        flat = {"x": self.x[:, :1]}
        torch.testing.assert_close(losses.sliced_score(one, flat), losses.implicit_score(one, flat))

    def test_their_difference_from_the_true_distance_is_a_constant(self):
        """Hyvarinen's theorem on exact expectations: E[implicit] - E|s - score|^2 / 2 = -E|score|^2 / 2."""
        world = oracle.Mixture([0.4, 0.6], [[-1.0], [1.2]], [0.3, 0.2])
        x = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
        density = world.log_prob(x, 0.0).exp()
        score = world.score(x, 0.0)
        constants = []
        for seed in range(3):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
            gap = losses.implicit_score(net, {"x": x}) - (net(x) - score).square()[:, 0] / 2
            constants.append((gap * density).sum().item() * 12 / 4000)
        true = -((score[:, 0] ** 2 / 2) * density).sum().item() * 12 / 4000
        assert constants == pytest.approx([true] * 3, rel=1e-6)

    def test_denoising_is_least_at_the_score_of_the_data_under_noise(self):
        x = self.x.repeat(400, 1)
        loss = lambda net, batch: losses.denoising_score(net, {"x": x}, sigma=0.7)  # noqa: E731
        noisy = (self.cov + 0.49 * torch.eye(2)).inverse()
        torch.manual_seed(0)
        there = self._slope(loss, self.mean, noisy)
        torch.manual_seed(0)
        clean = self._slope(loss, self.mean, self.cov.inverse())
        assert there.abs().max() < 0.005 and clean.abs().max() > 0.05

    def test_ncsn_is_denoising_on_the_variance_exploding_schedule(self):
        """Its loss, sigma^2 |s - score of q(x|x0)|^2 / 2, is half the eps loss at each level."""
        schedule = schedules.VE(sigma_max=5.0)
        world = oracle.Mixture([0.4, 0.6], [[-1.0], [1.2]], [0.3, 0.2], schedule=schedule)
        x0, t = noise((64, 1), seed=3), 0.8
        sigma = schedule(t)[1]
        torch.manual_seed(1)
        old = losses.denoising_score(lambda x: world(x, t).eps / -sigma, {"x": x0}, sigma=sigma)
        torch.manual_seed(1)
        new = losses.denoising(
            Wrapped(world, "v"), {"x": x0}, times=lambda n, device: torch.full((n,), t), weight=losses.weights.eps
        )
        torch.testing.assert_close(2 * old, new, rtol=1e-4, atol=1e-5)


def test_annealed_langevin_with_a_learned_score_finds_the_weights_of_far_modes():
    """What NCSN anneals for: at one noise level Langevin cannot cross between modes and keeps the start's weights."""
    schedule = schedules.VE(sigma_max=10.0)
    world = oracle.Mixture([0.2, 0.8], [[-3.0], [3.0]], [0.05, 0.05], schedule=schedule)
    torch.manual_seed(0)
    model = Denoiser(MLP(1, width=48, depth=2), schedule, "edm(2.4)")
    times = functools.partial(losses.log_normal, schedule=schedule, mean=0.0, std=1.5)
    loss = functools.partial(losses.denoising, weight=losses.weights.eps, times=times)
    data = {"x": world.sample(8000, seed=0)}
    done = fit(loss, data, model, steps=600, batch_size=256, lr=5e-3, ema=0.99, progress=False, precision="float32")
    x = sample(done.ema, noise((2000, 1), seed=1), sampler=samplers.langevin(corrections=2), steps=30, seed=2)
    assert (x < 0).float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert x[x > 0].mean().item() == pytest.approx(3.0, abs=0.1)
    assert x[x > 0].std().item() == pytest.approx(0.05**0.5, abs=0.05)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (functools.partial(losses.sliced_score, slices=0), "slices must be at least 1, got 0"),
        (functools.partial(losses.denoising_score, sigma=0.0), "sigma must be positive, got 0"),
    ],
)
def test_misuse(loss, message):
    with pytest.raises(ValueError, match=message):
        loss(lambda x: x, {"x": torch.zeros(2, 1)})


class _Constant(nn.Module):
    """D(x_t) = d everywhere, said as `predicts` would have it at t = 1, where x_t = eps."""

    def __init__(self, d, predicts):
        super().__init__()
        self.d, self.predicts = nn.Parameter(torch.tensor(d)), predicts

    def forward(self, x, t):
        return self.d.expand(x.shape) if self.predicts == "x0" else x - self.d


@pytest.mark.parametrize("predicts", ["x0", "velocity"])
def test_a_perceptual_part_moves_the_optimum_from_the_mean_towards_its_own(predicts):
    # x0 is 1 in three rows of ten and else 0. Of pure noise nothing is seen, so D is one number d:
    # E (x0 - d)^2 is least at the mean, .3, E |x0 - d| at the median, 0, and with half of this added at d = .2
    x0 = (torch.arange(1000) % 10 < 3).float()[:, None]
    model = Denoiser(net := _Constant(0.2, predicts), schedules.Linear(), predicts)
    pure = {"times": lambda n, device: torch.ones(n)}
    slope = {}
    for weight in (0.0, 0.5):
        loss = losses.denoising(model, {"x": x0}, perceptual=lambda a, b, w=weight: w * (a - b).abs()[:, 0], **pure)
        (slope[weight],) = torch.autograd.grad(loss.mean(), net.d)
    assert slope[0.0] == pytest.approx(-0.2, abs=1e-5)
    assert slope[0.5] == pytest.approx(0, abs=1e-5)
