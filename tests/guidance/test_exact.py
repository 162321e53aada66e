"""Guidance against cases whose answer is known in closed form."""

import math
from functools import partial

import pytest
import torch

import suffuse as sf
from suffuse import guidance, losses, oracle, schedules
from suffuse.training import fit

from .worlds import F64, MEANS, WORLD, Exact, log_likelihood, over_floor, tilted

SCHEDULES = {"linear": schedules.Linear(), "vp": schedules.VP(), "ve": schedules.VE()}
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
NOISE = sf.noise((500, 2), seed=1, dtype=F64)


def states(world, t, n=200):
    alpha, sigma = world.schedule(t)
    return alpha * world.sample(n, seed=3) + sigma * sf.noise((n, 2), seed=4, dtype=F64)


@EVERY_SCHEDULE
def test_guidance_of_exact_denoisers_has_the_closed_form_score(schedule):
    """grad log p(x_t)^(1-w) p(x_t | y)^w at every level; on Gaussians of one covariance that is again a Gaussian's."""
    world, w = WORLD.on(schedule), 3.5
    guided = guidance.guide(world.given(label=1), world, w)
    for t in (0.05, 0.4, 0.9):
        x, sigma = states(world, t), schedule(t)[1]
        score = (1 - w) * world.score(x, t) + w * world.given(label=1).score(x, t)
        torch.testing.assert_close(guided(x, t).eps, -sigma * score, rtol=1e-9, atol=1e-9)
    near, far = torch.tensor([0.2, -0.1], dtype=F64), torch.tensor([0.6, 0.5], dtype=F64)
    pos, neg, exact = (oracle.Gaussian(m, 0.3, schedule=schedule) for m in (far, near, near + w * (far - near)))
    got = sf.sample(guidance.guide(pos, neg, w), NOISE, steps=10)
    torch.testing.assert_close(got, sf.sample(exact, NOISE, steps=10), rtol=0, atol=1e-9)


@EVERY_SCHEDULE
def test_an_exact_classifier_at_one_is_the_exact_conditional(schedule):
    world = WORLD.on(schedule)
    guided, exact = guidance.classifier(world, Exact(world), 1), world.given(label=1)
    for t in (0.02, 0.3, 0.7, 0.98):
        x = states(world, t)
        got, want = guided(x, t), exact(x, t)
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-8, atol=1e-8)
        by_row = guided(x, torch.full((len(x),), t, dtype=F64))
        torch.testing.assert_close(by_row.x0, got.x0, rtol=1e-9, atol=1e-9)
    x = states(world, 1.0)
    torch.testing.assert_close(guided(x, 1.0).x0, exact(x, 1.0).x0, rtol=0, atol=2e-3)


def test_the_gradient_may_flow_through_classifier_guidance():
    guided, x = guidance.classifier(WORLD, Exact(WORLD), 1, 2.0), states(WORLD, 0.4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(guided(x, 0.4).x0.square().sum(), x)
    h = 1e-6 * sf.noise((4, 2), 5, dtype=F64)
    up, down = (guided(x.detach() + s * h, 0.4).x0.square().sum() for s in (1, -1))
    torch.testing.assert_close((slope * h).sum(), (up - down) / 2, rtol=1e-6, atol=0)


class Noised:
    """E[p(y | x0)^s | x_t] as a classifier: the likelihood that p(x0) p(y | x0)^s has at x_t, by Gauss-Hermite sums."""

    schedule = WORLD.schedule

    def __init__(self, s, nodes=7):
        u, vectors = torch.linalg.eigh(torch.diag(torch.arange(1, nodes, dtype=F64).sqrt(), 1), UPLO="U")
        w = vectors[0] ** 2
        self.s, self.u, self.w = s, torch.cartesian_prod(u, u), torch.outer(w, w).flatten()

    def __call__(self, x, t):
        alpha, sigma = self.schedule(t)
        var = torch.tensor([0.12, 0.2, 0.1, 0.15], dtype=F64)
        total = alpha**2 * var + sigma**2
        gap = x[:, None] - alpha * MEANS
        mean = MEANS + (alpha * var / total)[:, None] * gap
        x0 = mean[:, :, None] + (var * sigma**2 / total).sqrt()[:, None, None] * self.u
        inner = (self.s * log_likelihood(x0.reshape(-1, 2))).exp().reshape(x0.shape[:3]) @ self.w
        share = (WORLD.log_weights - gap.square().sum(-1) / (2 * total) - total.log()).softmax(1)
        r = (share * inner).sum(1).clamp(1e-300, 1 - 1e-12)
        return torch.stack([(1 - r).log(), r.log()], 1)


@pytest.mark.parametrize("s", [1.0, 3.0])
def test_where_classifier_guidance_samples_the_tilted_mixture(s):
    """p(x) p(y|x)^s: at s=1 as it is; at s=3 by the power's noised likelihood, not the power of the noised one."""

    def draw(n, seed):
        return tilted(n, s, seed)

    plain = sf.sample(guidance.classifier(WORLD, Exact(WORLD), 1, s), NOISE, steps=24)
    ratio = over_floor([plain], draw)
    if s == 1:
        assert ratio < 1.3, ratio
        return
    assert ratio > 4, f"{ratio}: the power of the noised likelihood is another distribution"
    noised = sf.sample(guidance.classifier(WORLD, Noised(s), 1), NOISE[:300], steps=16)
    assert over_floor([noised], draw) < 1.3


def test_even_classes_that_do_not_overlap_are_met_at_one_only():
    """There p(x) p(y|x)^s is p(x | y) for every s, and yet a scale of 3 moves samples off it."""
    apart = oracle.Mixture([0.3, 0.3, 0.25, 0.15], 4 * MEANS, 0.05, labels=[0, 0, 1, 1])
    exact = apart.given(label=1).sample
    ratios = {
        s: over_floor([sf.sample(guidance.classifier(apart, Exact(apart), 1, s), NOISE, steps=40)], exact)
        for s in (1.0, 3.0)
    }
    assert ratios[1.0] < 1.3 and ratios[3.0] > 3, ratios


def test_steering_samples_the_tilted_mixture():
    """p(x) p(y|x)^3, from the value of log p(y|x0) alone; 8 sets of samples that are independent within."""
    groups, k, s = 200, 24, 3.0
    noise = sf.noise((groups * k, 2), seed=2, dtype=F64)
    x = guidance.steer(WORLD, log_likelihood, noise, particles=k, lam=s, steps=40, seed=3)
    sets = list(x.reshape(groups, k, 2).unbind(1))[:8]
    assert over_floor(sets, lambda n, seed: tilted(n, s, seed)) < 1.3


def test_steering_errs_less_the_more_particles_there_are():
    """On a Gaussian with a linear reward, whose tilt is again a Gaussian: the mean's squared error falls like 1/K."""
    cov = torch.tensor([[0.6, 0.2], [0.2, 0.3]], dtype=F64)
    world, b = oracle.Gaussian(torch.tensor([0.3, -0.2], dtype=F64), cov), torch.tensor([0.9, -0.6], dtype=F64)
    exact, groups, errors = world.mean() + cov @ b, 96, {}
    rule = sf.samplers.dpmpp_multistep_sde  # its variance is right to 2 % at 30 steps; that of ddpm is 15 % small
    for k in (4, 64):
        noise = sf.noise((groups * k, 2), seed=4, dtype=F64)
        x = guidance.steer(world, lambda x0: x0 @ b, noise, particles=k, sampler=rule, steps=30, seed=7)
        errors[k] = (x.reshape(groups, k, 2).mean(1) - exact).square().sum(1).mean().item()
    slope = math.log(errors[4] / errors[64]) / math.log(16)
    assert 0.85 < slope < 1.2, errors
    assert errors[64] < 2.2 * cov.trace().item() / 64, "not much worse than exact draws"


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_steering_is_right_however_often_it_resamples(threshold):
    """A weight is a particle's own potential over its ancestor's: mean and spread of the tilted Gaussian."""
    world, b, k, lam = oracle.Gaussian(torch.tensor([0.3, -0.2], dtype=F64), 0.4), torch.tensor([0.9, -0.6]), 64, 2.0
    noise = sf.noise((48 * k, 2), seed=4, dtype=F64)
    how = {"sampler": sf.samplers.dpmpp_multistep_sde, "steps": 30, "seed": 7, "threshold": threshold}
    x = guidance.steer(world, lambda x0: x0 @ b.double(), noise, particles=k, lam=lam, **how).reshape(48, k, 2)
    assert (x.mean((0, 1)) - world.mean() - lam * 0.4 * b).norm() < 0.1
    assert (x.var(1).mean(0) / 0.4 - 1).abs().max() < 0.15


def test_every_place_of_a_group_is_a_fair_draw():
    log_w = torch.tensor([0.1, 0.6, 0.3], dtype=F64).log().expand(20_000, 3)
    index, after = guidance.resample(log_w, 2.0, 5)
    drawn = index.reshape(-1, 3) % 3
    assert bool((index.reshape(-1, 3) // 3 == torch.arange(20_000)[:, None]).all()) and not after.any()
    for place in range(3):
        shares = drawn[:, place].bincount(minlength=3) / 20_000
        torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), rtol=0, atol=0.015)
    counts = torch.stack([(drawn == i).sum(1) for i in range(3)], 1)
    low, high = torch.tensor([0, 1, 0]), torch.tensor([1, 2, 1])
    assert bool(((counts >= low) & (counts <= high)).all()), "K w rounded down or up"


def test_and_of_conditions_that_are_independent_is_their_joint():
    """Rows times columns: p(x | row, column) at every noise level; NOT a Gaussian's neighbour is the mirrored one."""
    grid = torch.cartesian_prod(torch.tensor([-1.0, 0.2, 1.2]), torch.tensor([-0.8, 0.9])).double()
    weights = torch.outer(torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.6, 0.4])).flatten()
    columns, rows = ([i // 2 for i in range(6)], [i % 2 for i in range(6)])
    by_column, by_row = (oracle.Mixture(weights, grid, 0.15, labels=labels) for labels in (columns, rows))
    both = guidance.compose(by_column, (by_column.given(label=2), 1.0), (by_row.given(label=0), 1.0))
    exact = oracle.Gaussian(grid[4], 0.15)
    for t in (0.05, 0.5, 0.95):
        x = states(by_column, t)
        torch.testing.assert_close(both(x, t).x0, exact(x, t).x0, rtol=1e-8, atol=1e-8)
    m = torch.tensor([0.4, 0.3], dtype=F64)
    base, near, mirrored = (oracle.Gaussian(c * m, 0.3) for c in (0, 1, -1))
    got = guidance.compose(base, (near, -1.0))(x, 0.5)
    torch.testing.assert_close(got.x0, mirrored(x, 0.5).x0, rtol=1e-9, atol=1e-9)


class _Small(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = sf.nets.MLP(5, width=width, depth=2)
        self.out = torch.nn.Linear(5, 2)

    def forward(self, x, t):
        a, b = x.unbind(1)
        return self.out(self.body(torch.stack([a, b, a * a, b * b, a * b], 1), t))


LEARNED = {
    "seconds": (0.08, {"steps": 180, "batch_size": 512, "lr": 8e-3}, False),
    "the bar": (0.01, {"steps": 800, "batch_size": 256, "lr": 5e-3, "optimizer": "muon"}, True),
}


@pytest.mark.parametrize("name", ["seconds", pytest.param("the bar", marks=pytest.mark.slow)])
def test_a_trained_classifier_learns_the_exact_gradient(name):
    """Where it guides, on x_t of its class: within 1 % of its square by labels pooled over the batch."""
    x, (bar, how, pooled) = WORLD.sample(60_000, seed=1), LEARNED[name]
    torch.manual_seed(0)
    judge = guidance.NoisyClassifier(_Small(48), WORLD.schedule)
    batch = {"x": x.float(), "label": Exact(WORLD)(x, 0.0).softmax(1).float()}
    loss = partial(losses.noisy_classification, pooled=pooled)
    fit(loss, batch, judge, ema=None, progress=False, **how)
    error = size = 0.0
    for t in (0.1, 0.25, 0.5, 0.75):
        at = states(WORLD.given(label=1), t, 4000)
        plain, exact = WORLD(at, t).x0, WORLD.given(label=1)(at, t).x0
        learned = guidance.classifier(WORLD, judge.eval(), 1)(at.float(), t).x0.double()
        error += (learned - exact).square().sum().item()
        size += (plain - exact).square().sum().item()
    assert error / size < bar, error / size


@pytest.mark.parametrize("t", [0.05, 0.75])
def test_pooled_labels_have_the_same_gradient_on_average_and_less_variance(t):
    """At the exact classifier that is none, in three directions of the scores; off it, another label's."""

    class Off(torch.nn.Module):
        schedule = WORLD.schedule

        def __init__(self, shift):
            super().__init__()
            self.theta, self.shift = torch.nn.Parameter(torch.zeros(64, 3, dtype=F64)), shift

        def forward(self, x, t):
            along = (self.theta * torch.stack([torch.ones_like(x[:, 0]), *x.unbind(1)], 1)).sum(1)
            return Exact(WORLD)(x, t[0].item()) + torch.stack([0 * along, along + self.shift], 1)

    x = WORLD.sample(64 * 150, seed=2)
    read = Exact(WORLD)(x, 0.0)
    label = torch.distributions.Categorical(logits=read)
    torch.manual_seed(1)
    label = label.sample()
    for shift in (0.0, 0.7):
        grads = {}
        for pooled in (False, True):
            model, parts = Off(shift), []
            torch.manual_seed(0)
            for rows in torch.arange(len(x)).split(64):
                at = lambda n, device: torch.full((n,), t, dtype=F64)  # noqa: E731
                loss = losses.noisy_classification(model, {"x": x[rows], "label": label[rows]}, times=at, pooled=pooled)
                parts.append(torch.autograd.grad(loss.sum(), model.theta)[0].mean(0))
            grads[pooled] = torch.stack(parts)
        z = {k: g.mean(0) / (g.std(0) / len(g) ** 0.5) for k, g in grads.items()}
        apart = grads[True] - grads[False]
        assert (apart.mean(0) / (apart.std(0) / len(apart) ** 0.5 + 1e-12)).abs().max() < 4, "one mean"
        assert all((v.abs().max() < 4) == (shift == 0) for v in z.values())
        by_row = [grads[k].std(0) for k in (True, False)]
        assert (by_row[0] <= 1.05 * by_row[1]).all()
        assert t < 0.5 or (by_row[0] < 0.5 * by_row[1])[1:].all(), "of the slopes, at high noise"
