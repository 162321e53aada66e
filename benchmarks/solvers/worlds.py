"""The problems of the solver benchmark: mixtures whose flow is known to many digits, at every noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import suffuse as sf

SCHEDULES = {
    "ddpm": sf.schedules.Discrete.ddpm(),
    "cosine": sf.schedules.Discrete.cosine(),
    "flow": sf.schedules.Linear(),
}
HELD_SCHEDULES = {
    "scaled-linear": sf.schedules.Discrete.scaled_linear(),
    "flow-shift-3": sf.schedules.Linear().shift(3.0),
    "vp": sf.schedules.VP(),
}


class World(sf.oracle.Mixture):
    """A mixture with diagonal covariances that asks for x0 by matrix products: the oracle's answers, 20 x sooner."""

    def moments(self, x: Tensor, a: float, s: float) -> tuple[Tensor, Tensor]:
        """(E[x0 | x], log weights of the components (K, B)) at (alpha, sigma), for x (B, D) in float64."""
        var = a * a * self.vars + s * s
        constant = self.log_weights - 0.5 * (var.log() + a * a * self.flat * self.flat / var).sum(1)
        logits = (-0.5 / var) @ (x * x).T + (a * self.flat / var) @ x.T + constant[:, None]
        share = logits.softmax(0).T  # along the first axis softmax is several times faster
        return a * x * (share @ (self.vars / var)) + share @ (self.flat * (s * s / var)), logits

    def __call__(self, x: Tensor, t: Any, *, to: Any = None) -> sf.Prediction:
        """The exact prediction; times by row go through the oracle."""
        if isinstance(t, Tensor) and t.ndim:
            return super().__call__(x, t)
        alpha, sigma = self.schedule(float(t))
        return sf.Prediction(x, alpha, sigma, x0=self.moments(x, alpha, sigma)[0])


def world(d: int, kind: str, seed: int, *, components: int = 12, std: float = 1.0) -> World:
    """A mixture in d dimensions of variance std^2 per dimension, its components apart or overlapping.

    Args:
        kind: "separated": components have 0.15 of the whole standard deviation on average; "overlapping": 0.6.
    """
    inner = {"separated": 0.15, "overlapping": 0.6}[kind]
    means = sf.noise((components, d), seed=seed, dtype=torch.float64)
    shares = torch.exp(0.5 * sf.noise((components,), seed=seed + 1, dtype=torch.float64))
    spread = inner * torch.exp(0.4 * sf.noise((components, d), seed=seed + 2, dtype=torch.float64))
    w = shares / shares.sum()
    means = means - w @ means
    means = means * (math.sqrt(max(1 - inner**2, 0.05)) / (w @ (means * means)).sqrt())
    return World(shares, means * std, (spread * std) ** 2)


@dataclass(frozen=True)
class Problem:
    """A mixture under a schedule."""

    name: str
    world: World
    schedule: sf.schedules.Schedule


class Truth:
    """The flow of one mixture from pure noise, solved once in x/alpha against rho = sigma/alpha: x/alpha at any rho.

    Every schedule walks the same curve, so one solution serves all, and a peer that begins or ends at a level of its
    own is compared there.
    """

    highest, lowest = 1e5, 1e-5

    def __init__(self, mixture: World, samples: int, seed: int, steps: int = 400) -> None:
        self.mixture = mixture
        self.noise = sf.noise((samples, mixture.flat.shape[1]), seed=seed, dtype=torch.float64)
        log = torch.linspace(math.log(self.highest), math.log(self.lowest), steps + 1, dtype=torch.float64)
        self.rhos = log.exp().tolist()
        # from rho = infinity, where x/rho is the noise, the first step is the mean's: wrong by 1/rho^2
        self.states = [self.noise * self.highest + mixture.log_weights.exp() @ mixture.flat]
        for a, b in zip(self.rhos, self.rhos[1:], strict=False):
            self.states.append(self._step(self.states[-1], a, b))

    def _step(self, y: Tensor, a: float, b: float) -> Tensor:
        """One step of RK4 in u = asinh(rho / s), in which neither end is stiff."""

        def slope(y: Tensor, u: float) -> Tensor:
            rho = math.sinh(u)
            return math.cosh(u) * (y - self.mixture.moments(y, 1.0, rho)[0]) / rho

        ua, ub = math.asinh(a), math.asinh(b)
        if b < 0.02:  # straight lines in log rho: d y / d log rho = y - x0
            ua, ub = math.log(a), math.log(b)

            def slope(y: Tensor, u: float) -> Tensor:
                return y - self.mixture.moments(y, 1.0, math.exp(u))[0]

        h = ub - ua
        k1 = slope(y, ua)
        k2 = slope(y + h / 2 * k1, ua + h / 2)
        k3 = slope(y + h / 2 * k2, ua + h / 2)
        k4 = slope(y + h * k3, ub)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def at(self, rho: float) -> Tensor:
        """x/alpha at rho = sigma/alpha; at rho = 0 the data."""
        if rho <= self.lowest:
            return self.states[-1] if rho > 0 else self.mixture.moments(self.states[-1], 1.0, self.lowest)[0]
        if rho >= self.highest:
            return self.noise * rho + self.mixture.log_weights.exp() @ self.mixture.flat
        k = next(i for i, r in enumerate(self.rhos) if r <= rho)
        return self._step(self.states[k - 1], self.rhos[k - 1], rho) if self.rhos[k] < rho else self.states[k]

    def start(self, schedule: sf.schedules.Schedule) -> Tensor:
        """x at t = 1 of a schedule."""
        alpha, sigma = schedule(1.0)
        return self.noise * sigma if alpha == 0 else alpha * self.at(sigma / alpha)

    def error(self, x: Tensor, rho: float = 0.0) -> dict[str, float]:
        """RMSE, RMSE of the best 95 % of the samples, and the share that ended in another component.

        A sampler that stops at some rho > 0 is held against the flow there, if that is as good as the end.
        """
        truth = self.at(rho if rho <= 0.02 else 0.0)
        by_row = ((x.double() - truth) ** 2).mean(1)
        if not bool(torch.isfinite(by_row).all()):
            return {"rmse": math.inf, "trimmed": math.inf, "flips": 1.0}
        kept = by_row.sort().values[: int(0.95 * len(by_row))]
        side = [self.mixture.moments(v.double(), 1.0, 1e-3)[1].argmax(0) for v in (x, truth)]
        return {
            "rmse": by_row.mean().sqrt().item(),
            "trimmed": kept.mean().sqrt().item(),
            "flips": (side[0] != side[1]).double().mean().item(),
        }
