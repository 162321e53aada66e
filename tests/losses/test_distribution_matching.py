"""Distribution matching and its critic: the gradient of a known divergence, and who learns what, when."""

import pytest
import torch
from torch import nn

from suffuse import Denoiser, losses, noise, oracle, schedules
from suffuse.losses import fewstep
from suffuse.nets import MLP, Label

from .worlds import WORLD, C, Exact, M

BATCH = {"x": noise((32, 2), seed=0), "label": torch.arange(32) % 3}


WORLD_1 = oracle.Gaussian([0.3], 0.2)


def WORLD_MAP(x, t):
    return Exact()(x, t, torch.zeros_like(t))


class _Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x, t, label):
        return self.linear(torch.cat([x, t[:, None]], 1))[:, 0]


class TestDistributionMatching:
    def test_its_gradient_is_that_of_the_divergence_between_gaussians(self):
        """x = a + b z; KL between N(alpha a, alpha^2 b^2 + sigma^2) and the data's, averaged over the times."""
        n, a0, b0 = 400_000, -0.5, 0.9
        span = lambda n, device: 0.3 + 0.5 * losses.stratified(n, device).double()  # noqa: E731
        a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a0, b0))
        real, fake = oracle.Gaussian([M], C), oracle.Gaussian([a0], b0**2)
        torch.manual_seed(0)
        x = a + b * torch.randn(n, 1, dtype=torch.float64)
        fewstep.distribution_matching(real, fake, x, weight="kl", times=span).mean().backward()
        u, v = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a0, b0))
        t = 0.3 + 0.5 * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        own, theirs = (1 - t) ** 2 * v**2 + t**2, (1 - t) ** 2 * C + t**2
        kl = 0.5 * (own / theirs + (1 - t) ** 2 * (u - M) ** 2 / theirs - 1 - (own / theirs).log())
        kl.mean().backward()
        assert a.grad.item() == pytest.approx(u.grad.item(), rel=0.01)
        assert b.grad.item() == pytest.approx(v.grad.item(), rel=0.01)

    def test_who_learns_when(self):
        torch.manual_seed(0)
        teacher, generator, fake = (
            Denoiser(MLP(2, width=8, depth=1, conditions={"label": Label(3)}), schedules.Linear()) for _ in range(3)
        )
        critic = _Critic()
        for net in (teacher.net, generator.net, fake.net):
            nn.init.normal_(net.out.weight)
        loss = fewstep.DMD(teacher, fake, steps=2, every=3, critic=critic)
        nets = {"teacher": teacher.net, "generator": generator.net, "fake": fake.net, "critic": critic}
        learnt = []
        for _ in range(3):
            for net in nets.values():
                net.zero_grad()
            loss(generator, BATCH).mean().backward()
            learnt.append({k for k, net in nets.items() if any(p.grad is not None for p in net.parameters())})
        assert learnt == [{"fake", "critic"}, {"fake", "critic"}, {"generator"}]
        trained = {id(p) for p in loss.parameters()}
        assert trained == {id(p) for net in (fake.net, critic) for p in net.parameters()}

    def test_the_generator_is_trained_where_its_own_jumps_lead(self):
        """Two steps on exact data: the second start is noised data of the right spread."""
        seen = []

        def net(x, t):
            seen.append((t[0].item(), x.std().item()))
            return WORLD_MAP(x, t)

        generator = Denoiser(net, schedules.Linear())
        loss = fewstep.DMD(WORLD, Denoiser(MLP(2, width=8, depth=1).double(), schedules.Linear()), steps=2)
        z = noise((20000, 2), seed=0, dtype=torch.float64)
        for seed in range(8):
            torch.manual_seed(seed)
            loss.generate(generator, z)
        at = {round(t, 3): std for t, std in seen}
        assert at.keys() == {1.0, 0.5}
        assert at[1.0] == pytest.approx(1.0, abs=0.02) and at[0.5] == pytest.approx((0.25 * C + 0.25) ** 0.5, abs=0.01)


class TestCritic:
    """DMD2's critic on N(0.6, 0.3^2) as data and N(-0.4, 0.5^2) as samples: what it learns, and what it pulls at."""

    real, made = oracle.Gaussian([0.6], 0.09), oracle.Gaussian([-0.4], 0.25)

    def test_it_learns_the_log_ratio_of_data_to_samples_under_noise(self):
        torch.manual_seed(0)
        fake = Denoiser(MLP(1, width=32, depth=1), schedules.Linear())
        critic = fewstep.Critic(fake, {"x": torch.zeros(1, 1)})
        generator = Denoiser(lambda x, t: 1.5 * x + 0.4 if (t == 1).all() else 0 * x, schedules.Linear())
        loss = fewstep.DMD(self.real, fake, critic=critic, every=10**9)
        adam = torch.optim.Adam(loss.parameters(), lr=5e-3)
        kept = [name for name in loss.state_dict() if name != "calls"]
        assert len({id(p) for p in loss.parameters()}) == len(kept), "weights are kept once"
        for _ in range(200):
            adam.zero_grad()
            loss(generator, {"x": self.real.sample(256, seed=_).float()}).mean().backward()
            adam.step()
        x = torch.linspace(-1.2, 1.5, 28, dtype=torch.float64)[:, None]
        for t in (0.25, 0.4):
            truth = self.real.log_prob(x, t) - self.made.log_prob(x, t)
            with torch.no_grad():
                found = critic(x.float(), torch.full((28,), t))
            share, exact = found.sigmoid(), truth.sigmoid()  # of being data
            assert exact.min() < 0.05 and exact.max() > 0.85 and (share - exact).abs().max() < 0.12

    def test_the_generator_goes_where_the_critic_says_data_is(self):
        """With a teacher that has nothing to add, and logit = k x_t: the gradient by a sum over x0, t and noise."""
        k, share, a = 1.5, 0.02, torch.tensor(0.2, dtype=torch.float64, requires_grad=True)

        class Steep(nn.Module):
            def forward(self, x, t):
                return k * x[:, 0]

        def flow(x, t):
            p = WORLD_1(x, t)
            return p.eps - p.x0

        def jump(x, t):
            return 0.5 * x - a

        span = lambda n, device: 0.2 + 0.6 * losses.stratified(n, device).double()  # noqa: E731
        loss = fewstep.DMD(
            WORLD_1,
            Denoiser(flow, schedules.Linear()),
            critic=Steep(),
            adversarial=share,
            every=1,
            times=span,
        )
        torch.manual_seed(0)
        loss(Denoiser(jump, schedules.Linear()), {"x": torch.zeros(200_000, 1).double()}).mean().backward()
        t, z = torch.linspace(0.2, 0.8, 801).double()[:, None], torch.linspace(-6, 6, 1201).double()
        x = (1 - t) * 0.2 + (((1 - t) * 0.5) ** 2 + t**2).sqrt() * z
        weight = (-(z**2) / 2).exp() / (-(z**2) / 2).exp().sum()
        truth = -share * k * ((1 - t) * torch.sigmoid(-k * x) * weight).sum(1).mean()
        assert a.grad.item() == pytest.approx(truth.item(), rel=0.02)


PLAIN = Denoiser(MLP(2), schedules.Linear())
START = noise((4, 2), seed=0)
MISUSE = {
    "weight": (lambda: fewstep.distribution_matching(WORLD, WORLD, START, weight="k"), "weight must be 'adaptive'"),
    "every": (lambda: fewstep.DMD(WORLD, PLAIN, every=0), "steps and every must be at least 1"),
    "a critic of nothing": (
        lambda: fewstep.Critic(Denoiser(nn.Linear(2, 2), schedules.Linear()), {"x": START}),
        "Linear has neither `middle` nor `blocks`",
    ),
    "a critic of what is not there": (
        lambda: fewstep.Critic(PLAIN, {"x": START}, at="blocks.9"),
        "MLP has no module 'blocks.9' to look at",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse(name):
    act, message = MISUSE[name]
    with pytest.raises(ValueError, match=message):
        act()
