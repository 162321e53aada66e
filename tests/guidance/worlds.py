"""The worlds guidance is tried on, a mixture whose classes overlap and a small network; every technique as one call.

On the mixture everything is known: p(y | x_t) at every noise level, and samples of p(x) p(y | x)^s by rejection.
"""

import torch

import suffuse as sf
from suffuse import guidance, oracle, schedules
from suffuse.nets import DiT, Label
from suffuse.random import bits

F64 = torch.float64
MEANS = torch.tensor([[-1.0, 0.3], [0.2, -0.9], [1.1, 0.4], [0.1, 0.9]], dtype=F64)
WORLD = oracle.Mixture([0.3, 0.3, 0.25, 0.15], MEANS, [0.12, 0.2, 0.1, 0.15], labels=[0, 0, 1, 1])


class Exact:
    """The classifier that is never wrong: log p(x_t, y) of every class."""

    def __init__(self, world):
        self.world, self.schedule = world, world.schedule

    def __call__(self, x, t):
        classes = sorted(set(self.world.labels.tolist()))
        shares = [self.world.log_weights.exp()[self.world.labels == y].sum().log() for y in classes]
        told = [self.world.given(label=y).log_prob(x, t) + share for y, share in zip(classes, shares, strict=True)]
        return torch.stack(told, 1)


def log_likelihood(x):
    """log p(y = 1 | x0), (B,)."""
    return Exact(WORLD)(x, 0.0).log_softmax(1)[:, 1]


def tilted(n, s, seed):
    """n exact draws of p(x) p(y = 1 | x)^s, by rejection."""
    x = WORLD.sample(12 * n, seed)
    u = (bits((len(x),), seed, stream=99).double() + 0.5) * 2.0**-32
    kept = x[u.log() < s * log_likelihood(x)]
    assert len(kept) >= n
    return kept[:n]


def sliced(a, b):
    u = torch.nn.functional.normalize(sf.noise((48, a.shape[1]), 7, dtype=F64), dim=1)
    return ((a @ u.T).sort(0).values - (b @ u.T).sort(0).values).square().mean().sqrt().item()


def over_floor(sets, draw):
    """Mean sliced W2 from sets of samples to exact sets, over that between exact sets of the same size."""
    real = [draw(len(sets[0]), 100 + i) for i in range(16)]
    floor = sum(sliced(a, b) for a, b in zip(real[:8], real[8:], strict=True)) / 8
    return sum(sliced(a, b) for a in sets for b in real) / len(sets) / len(real) / floor


def network(seed=1):
    net = DiT(1, patch=2, width=32, depth=3, heads=2, conditions={"label": Label(10)})
    torch.manual_seed(seed)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return sf.Denoiser(net.eval().requires_grad_(False), schedules.Linear(), "velocity")


class Reader(torch.nn.Module):
    """A classifier of noisy 8 x 8 pictures that has learned nothing in particular."""

    schedule = schedules.Linear()

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh())
        self.scores = torch.nn.Linear(16, 10)

    def forward(self, x, t):
        return self.scores(self.body(x))


MODEL, WEAK, READER = network(), network(2), Reader()
LABELS, W = torch.tensor([3, 1, 4, 1, 5, 9]), torch.linspace(1.5, 4, 6)
POS, NEG = MODEL.given(label=LABELS), MODEL
TECHNIQUES = {
    "guide": guidance.guide(POS, NEG, W),
    "guide, negative prompt": guidance.guide(POS, MODEL.given(label=2), 3.0, between=(0.1, 0.8)),
    "autoguidance": guidance.guide(POS, WEAK.given(label=LABELS), 2.0),
    "apg": guidance.apg(POS, NEG, W, eta=0.2, beta=-0.5, norm=2.0),
    "cfg_zero": guidance.cfg_zero(POS, NEG, W, zero_init=0.1),
    "rescale": guidance.rescale(guidance.guide(POS, NEG, 4.0), 0.7),
    "threshold": guidance.threshold(guidance.guide(POS, NEG, 4.0), 90),
    "interval": guidance.interval(guidance.apg(POS, NEG, 4.0), POS, logsnr=(-2.0, 2.0)),
    "pag": guidance.pag(POS, 2.0),
    "perturbed": guidance.perturbed(POS, lambda site: True),
    "classifier": guidance.classifier(POS, READER, LABELS, W),
    "compose": guidance.compose(MODEL, (POS, W), (MODEL.given(label=2), -1.0)),
    "all at once": guidance.threshold(
        guidance.rescale(guidance.apg(guidance.classifier(POS, READER, LABELS, 2.0), guidance.perturbed(POS), 3.0))
    ),
}
