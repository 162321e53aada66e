"""DDPM with a learned variance: a network also says how much noise each step adds, in every coordinate.

x_b = posterior mean of q(x_b | x_a, x0) + d z,    log d^2 = f log beta + (1 - f) log beta_small,

    beta = sigma_a^2 - (alpha_a/alpha_b)^2 sigma_b^2,    beta_small = beta sigma_b^2 / sigma_a^2

both of the step from a to b that is taken, whatever steps the network was trained with; f = (v + 1)/2 is the
prediction's `fraction`. f = 0 is `ddpm`, f = 1 is `ddpm(variance="large")`. A step to t = 0 adds no noise.

Nichol & Dhariwal 2021, eq. 15. Not a plan: d depends on the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from suffuse.denoise import fresh
from suffuse.parameterize import Prediction
from suffuse.samplers.ancestral import ddpm
from suffuse.samplers.flow import Loop
from suffuse.samplers.walk import RunStep
from suffuse.schedules import Schedule

__all__ = ["Learned", "LearnedPlan", "Transition", "ddpm_learned"]


class Transition:
    """q(x_b | x_a, x0) = N(on_x0 x0 + on_x x_a, small), and the range of variances a step from a to b may have.

    Args:
        schedule: gives alpha and sigma.
        a, b: times, b below a.
    """

    def __init__(self, schedule: Schedule, a: float, b: float) -> None:
        (alpha_a, sigma_a), (alpha_b, sigma_b) = schedule(a), schedule(b)
        ratio = alpha_a / alpha_b
        self.large = sigma_a**2 - (ratio * sigma_b) ** 2
        self.small = self.large * (sigma_b / sigma_a) ** 2
        self.on_x0, self.on_x = alpha_b * self.large / sigma_a**2, ratio * (sigma_b / sigma_a) ** 2

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        """on_x0 x0 + on_x x."""
        return self.on_x0 * x0 + self.on_x * x

    def log_var(self, p: Prediction) -> Tensor:
        """The learned log variance, like x. Both ends must be positive: not for a step to t = 0.

        Raises:
            ValueError: the prediction comes with no learned variance.
        """
        if p.fraction is None:
            raise ValueError(
                "this prediction has no learned variance: it comes from Denoiser(..., variance='range'), and does not "
                "survive .on(schedule) or a denoiser that rebuilds the prediction"
            )
        low, high = math.log(self.small), math.log(self.large)
        return low + (high - low) * p.fraction


class LearnedPlan:
    """`ddpm_learned` on a grid.

    Attributes:
        schedule, grid, steps, nfe: as of a `Plan`.
    """

    def __init__(self, schedule: Schedule, grid: Sequence[float] | Tensor) -> None:
        like = ddpm.plan(schedule, grid)  # checks the grid
        self.schedule, self.grid, self.steps, self.nfe = schedule, like.grid, like.steps, like.nfe

    def __repr__(self) -> str:
        return f"ddpm_learned on {self.schedule}: {self.steps} steps"

    def run(self, denoiser: Any, x: Tensor, path: Any = None) -> Iterator[RunStep]:
        """Step through the grid.

        Args:
            denoiser: whose predictions have a `fraction`. x: (B, ...) the state at grid[0].
            path: where noise comes from, `sf.BrownianPath(x.shape, seed)`.
        Raises:
            ValueError: there is no path; the denoiser lives on another schedule; it has no learned variance.
        """
        if denoiser.schedule != self.schedule:
            raise ValueError(f"{self!r} cannot run a denoiser on {denoiser.schedule}: use denoiser.on(schedule)")
        if path is None:
            raise ValueError("ddpm_learned draws noise: give it a seed")
        loop, k = Loop(fresh(denoiser), x, path), 0
        while k < self.steps:
            a, b = self.grid[k], self.grid[k + 1]
            step, p = Transition(self.schedule, a, b), loop.ask(loop.denoiser, loop.x, a, b)
            mean, loop.prediction = step.mean(loop.x, p.x0), p
            if step.small > 0:
                z = path.increment(self.schedule.logsnr(a), self.schedule.logsnr(b))
                mean = mean + (0.5 * step.log_var(p)).exp() * z
            loop.x = mean
            done = RunStep(k, self.steps, a, b, loop)
            yield done
            k += 1
            if done.jump is not None:
                if not 0 <= done.jump <= self.steps:
                    raise ValueError(f"cannot go to step {done.jump} of {self.steps}")
                k = done.jump
                path.renew()


class Learned:
    """What makes a `LearnedPlan` of a grid; `sf.samplers.ddpm_learned` is the one there is."""

    stages = 1

    def __repr__(self) -> str:
        return "ddpm_learned"

    def __call__(self) -> Learned:
        """It has no options."""
        return self

    def plan(self, schedule: Schedule, grid: Sequence[float] | Tensor) -> LearnedPlan:
        """This sampler on falling times."""
        return LearnedPlan(schedule, grid)


ddpm_learned = Learned()
