"""The doctor on networks that are right by construction, read rightly and in twelve wrong ways."""

import dataclasses

import pytest
import torch

import suffuse as sf
from suffuse import hub, oracle, schedules
from suffuse.hub.schedule import index
from suffuse.parameterize import Parameterization, edm, named

LINEAR, VP, COSINE = schedules.Linear(), schedules.VP(), schedules.Cosine()
DDPM, SD = schedules.Discrete.ddpm(), schedules.Discrete.scaled_linear()


WIDTH = 0.2  # of each mode, in units of the picture


def points(n=24):
    """Smooth pictures in [-1, 1], the modes of a mixture."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(n, 1, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(waves, size=(8, 8), mode="bilinear")
    return smooth / smooth.abs().amax((1, 2, 3), keepdim=True)


class Exact(torch.nn.Module):
    """What a perfectly trained network answers: a E[x0 | x] + b E[eps | x], under its own schedule, clock and range.

    Args:
        time: from what it is told to t. scale: what x was multiplied with on the way in, if anything.
    """

    def __init__(self, data, schedule, row, time=lambda told: told, scale=None):
        super().__init__()
        variance = (WIDTH * data.std() / X_STD) ** 2
        self.world = oracle.Mixture(torch.ones(len(data)), data, variance, schedule=schedule)
        self.row, self.time, self.scale = row, time, scale

    def forward(self, x, told):
        t = self.time(told).clamp(1e-4, 1.0)
        alpha, sigma = self.world.schedule(t, like=x)
        x = x if self.scale is None else x / self.scale(alpha, sigma)
        p = self.world(x, t)
        a, b = self.row(self.world.schedule, t, alpha, sigma)
        return (a * p.x0 + b * p.eps).to(x)


def indexed(predicts):
    return dataclasses.replace(named(predicts), tells=index)


def of_index(told):
    return (told + 1) / 1000


FLOW = Parameterization("flow", lambda schedule, t, a, s: (-1.0, 1.0))
DATA = Parameterization("to data", lambda schedule, t, a, s: (1.0, -1.0))
EPS, X0, V, VELOCITY = (named(n) for n in ("eps", "x0", "v", "velocity"))
X = points()
X_STD = X.std()
SEEN = X[:8] + WIDTH * torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))  # draws of the mixture

# name: (the true network, the claimed denoiser of it, {aspect: what the doctor should name})
MISTAKES = {
    "eps read as v": (Exact(X, VP, EPS.row), (VP, "v"), {"parameterization": "eps"}),
    "v read as eps": (Exact(X, COSINE, V.row), (COSINE, "eps"), {"parameterization": "v"}),
    "x0 read as eps": (Exact(X, DDPM, X0.row, of_index), (DDPM, indexed("eps")), {"parameterization": "x0"}),
    "a velocity of the other sign": (
        Exact(X, LINEAR, DATA.row),
        (LINEAR, "velocity"),
        {"parameterization": "velocity to data"},
    ),
    "EDM's F read as x0": (
        Exact(X, VP, edm().row, lambda told: _vp_time(-8 * told), edm().scale),
        (VP, "x0"),
        {"parameterization": "edm", "told time": "log(sigma/alpha)/4"},
    ),
    "time told backwards": (Exact(X, LINEAR, FLOW.row, lambda s: 1 - s), (LINEAR, "velocity"), {"told time": "1 - t"}),
    "time and velocity of flow_matching": (
        Exact(X, LINEAR, DATA.row, lambda s: 1 - s),
        (LINEAR, "velocity"),
        {"told time": "1 - t", "parameterization": "velocity to data"},
    ),
    "t told where an index was meant": (
        Exact(X, DDPM, EPS.row, of_index),
        (DDPM, "eps"),
        {"told time": "index"},
    ),
    "a linear schedule instead of scaled linear": (
        Exact(X, SD, EPS.row, of_index),
        (DDPM, indexed("eps")),
        {"schedule": "Discrete.scaled_linear()"},
    ),
    "a flow's shift forgotten": (
        Exact(X, LINEAR.shift(3.0), FLOW.row),
        (LINEAR, FLOW),
        {"schedule": "Linear().shift(3)"},
    ),
    "data in [0, 1]": (
        Exact((X + 1) / 2, VP, EPS.row),
        (VP, "eps"),
        {"data": "x in [-1, 1] as (x + 1) / 2"},
    ),
    "data of 0 to 255": (
        Exact(127.5 * (X + 1), VP, X0.row),
        (VP, "x0"),
        {"data": "x in [-1, 1] as 127.5 (x + 1)"},
    ),
}


def _vp_time(logsnr):
    return VP.time(logsnr)


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_named(name):
    net, (schedule, predicts), expected = MISTAKES[name]
    found = hub.check(sf.Denoiser(net, schedule, predicts), SEEN)
    assert {f.aspect: f.fits for f in found.findings} == expected, str(found)
    assert found.best < found.error and not found.healthy
    for aspect, fits in expected.items():
        assert f"{aspect}: " in str(found) and fits in str(found)


@pytest.mark.parametrize(
    ("net", "schedule", "predicts"),
    [
        (Exact(X, VP, EPS.row), VP, "eps"),
        (Exact(X, COSINE, V.row), COSINE, "v"),
        (Exact(X, LINEAR, FLOW.row), LINEAR, "velocity"),
        (Exact(X, LINEAR.shift(3.0), FLOW.row), LINEAR.shift(3.0), FLOW),
        (Exact(X, DDPM, EPS.row, of_index), DDPM, indexed("eps")),
        (Exact(X, SD, V.row, of_index), SD, indexed("v")),
    ],
)
def test_a_healthy_model_is_left_alone(net, schedule, predicts):
    found = hub.check(sf.Denoiser(net, schedule, predicts), SEEN)
    assert found.healthy, str(found)
    assert "healthy" in str(found)


class Scaled:
    """A codec that multiplies by a scale."""

    def __init__(self, scale):
        self.scale = scale

    def encode(self, x, seed):
        return self.scale * torch.cat([x, x], 1)

    def decode(self, z):
        return z[:, :1] / self.scale


def test_the_latent_scale():
    latents = 5 * torch.cat([X, X], 1)
    net = Exact(0.18215 * latents, SD, EPS.row, of_index)
    for claimed, fits in ((0.18215, None), (1.0, "latents times 0.18215 instead of 1")):
        codec = Scaled(claimed)
        codec.encode = lambda x, seed, s=claimed: s * 5 * torch.cat([x, x], 1)
        model = sf.Denoiser(net, SD, indexed("eps"), shape=(2, 8, 8), codec=codec)
        found = hub.check(model, SEEN)
        assert [f.fits for f in found.findings] == ([] if fits is None else [fits])


def test_what_cannot_be_checked():
    model = sf.Denoiser(Exact(X, VP, EPS.row), VP, "eps")
    with pytest.raises(TypeError, match="give it a Denoiser, not a Composed"):
        hub.check(sf.guide(model, model, 2.0), SEEN)
    with pytest.raises(ValueError, match="at least 4 that are not all the same"):
        hub.check(model, SEEN[:2])
