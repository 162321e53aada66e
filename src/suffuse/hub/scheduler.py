"""A sampler of suffuse as a scheduler of diffusers: for pipelines that are to stay as they are.

pipe.scheduler = sf.hub.Scheduler(sf.samplers.dpmpp(order=3), like=pipe.scheduler)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from suffuse.hub.folder import require
from suffuse.hub.schedule import FLOW, schedule_of
from suffuse.parameterize import Prediction
from suffuse.random import BrownianPath
from suffuse.samplers import Plan, plan_for
from suffuse.samplers.symbols import PREDICTED
from suffuse.samplers.walk import Walk
from suffuse.schedules import Linear, left

__all__ = ["Scheduler"]


class _Ask(Exception):
    """A row wants the network's answer at a state that it was not yet given for."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


@dataclass
class Output:
    """What a step returns: the state that the network is asked about next, or the last one."""

    prev_sample: Tensor

    def __getitem__(self, i: int) -> Tensor:
        return (self.prev_sample,)[i]


class Scheduler:
    """A sampler in the shape of a scheduler: `set_timesteps`, `timesteps`, `step`.

    Args:
        sampler: a rule, a `Plan` (fitted ones too), or None for suffuse's default at that many steps.
        like: the scheduler it takes the place of, which says the betas or the shift, and what the network predicts.
        grid: as for `sf.sample`; None is the default grid.
        seed: for stochastic samplers.
        size: numbers in one item, which the default grid depends on.
    Raises:
        ValueError: a scheduler that is not understood; a sampler that needs the guided and the negative answer apart.

    A pipeline loops over the network's evaluations, so a sampler of two stages makes twice as many timesteps as steps.
    """

    order = 1

    def __init__(
        self, sampler: Any = None, *, like: Any, grid: Any = None, seed: int | None = None, size: int = 4 * 64 * 64
    ) -> None:
        self.sampler, self.grid, self.seed, self.size, self.config = sampler, grid, seed, size, like.config
        self._moves = bool(like.config.get("use_dynamic_shifting"))
        config = dict(like.config) | ({"use_dynamic_shifting": False} if self._moves else {})
        self.schedule, self.parameterization = schedule_of(
            config, type(like).__name__, require("diffusers"), type(like).__name__
        )
        self.timesteps, self.num_inference_steps, self._begin = torch.tensor([]), 0, 0
        self._plan: Plan | None = None
        self._walk: Walk | None = None

    def __repr__(self) -> str:
        return f"Scheduler({self.sampler!r}, on {self.schedule})"

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies unit noise with at the start: the spread of unit data there."""
        return math.hypot(*self.schedule(self._plan.grid[0] if self._plan else 1.0))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this timestep, as image to image does.

        Raises:
            ValueError: the sampler has stages within its steps, or is a fixed table.
        """
        self._begin, self._walk = begin_index, None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Make the plan of this many steps.

        Args:
            num_inference_steps: steps of the grid. sigmas: only their number is looked at.
            mu: log of the time shift, from pipelines whose shift depends on the picture.
        Raises:
            ValueError: no number of steps; a `Plan` of another number of steps or another schedule.
        """
        n = num_inference_steps if num_inference_steps is not None else None if sigmas is None else len(sigmas)
        if n is None:
            raise ValueError("say num_inference_steps=")
        if mu is not None and self._moves:
            self.schedule = Linear().shift(math.exp(mu))
        if isinstance(self.sampler, Plan):
            plan = self.sampler
            if plan.steps != n or plan.schedule != self.schedule:
                raise ValueError(
                    f"this plan has {plan.steps} steps on {plan.schedule}, asked for {n} on {self.schedule}: "
                    "make the plan anew"
                )
        else:
            plan = plan_for(self.schedule, sampler=self.sampler, steps=n, grid=self.grid, size=self.size)
        if any(kind.endswith("_neg") for row in plan.rows for kind, _ in row.terms or ()):
            raise ValueError(f"{plan.name} needs the negative's answer apart, which a pipeline does not hand on")
        self._plan, self._walk, self._begin, self.num_inference_steps = plan, None, 0, n
        tells = self.parameterization.tells
        assert tells is not None
        told = [tells(self.schedule, plan.rows[i].t) for i in _asked(plan)]
        scale = 1000.0 if self.parameterization is FLOW else 1.0
        self.timesteps = torch.tensor([scale * t for t in told], dtype=torch.float32, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state itself, which is in the network's own units."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps at these timesteps, (1,) or (B,)."""
        t = torch.as_tensor([self._time(float(v)) for v in timesteps.flatten()], dtype=noise.dtype, device=noise.device)
        alpha, sigma = self.schedule(t.expand(len(noise)) if len(t) == 1 else t)
        return left(alpha, noise) * original_samples + left(sigma, noise) * noise

    scale_noise = add_noise

    def _time(self, told: float) -> float:
        assert self._plan is not None
        nearest = int((self.timesteps - told).abs().argmin())
        return self._plan.rows[_asked(self._plan)[nearest]].t

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **ignored: Any
    ) -> Any:
        """The state to ask the network about next, or the last one.

        Args:
            model_output: what it answered (guided already). timestep: where. sample: the state it was asked about,
                which may have been changed since it was returned (inpainting).
        Raises:
            ValueError: not the timestep whose turn it is.
        """
        if self._plan is None:
            raise ValueError("call set_timesteps first")
        if self._walk is None:
            self._start(sample)
        walk, plan, at = self._walk, self._running, self._running.rows[self._order[self._turn]]
        assert walk is not None
        told = self.timesteps[self._begin + self._turn]
        if abs(float(told) - float(timestep)) > 1e-3 * max(1.0, abs(float(told))):
            raise ValueError(f"it is the turn of timestep {float(told):g}, got {float(timestep):g}")
        walk.values["x", self._order[self._turn]] = sample
        p, answer = self.parameterization, model_output.to(sample.dtype)
        row = p.row(self.schedule, at.t, at.alpha, at.sigma)
        self._answer = p.read(answer, sample, at.alpha, at.sigma, row)
        self._turn += 1
        out = sample
        try:
            while self._row < len(plan.rows):
                walk.row(plan, self._row)
                out = walk.values["x", self._row]
                self._row += 1
        except _Ask as ask:
            out = ask.x
        if self._row == len(plan.rows):
            self._walk = None
        return Output(out) if return_dict else (out,)

    def _start(self, sample: Tensor) -> None:
        plan = self._plan
        assert plan is not None
        if self._begin:
            if (
                plan._rebuild is None
                or _asked(plan) != [plan.rows.index(r) for r in plan.rows if r.main or r.terms is None][:-1]
            ):
                raise ValueError(
                    f"{plan.name} cannot start at timestep {self._begin}: its steps have stages, or are fixed"
                )
            plan = plan._rebuild(plan.grid[self._begin :])
        path = None
        if plan.stochastic:
            if self.seed is None:
                raise ValueError(f"{plan.name} draws noise: Scheduler(..., seed=0)")
            path = BrownianPath(sample.shape, self.seed, device=sample.device, dtype=sample.dtype)
        self._running, self._order, self._turn, self._row = plan, _asked(plan), 0, plan.given + 1
        self._answer: Prediction | None = None
        self._walk = Walk(plan, self._reply, [sample], path)

    def _reply(self, x: Tensor, t: Any) -> Prediction:
        """In the place of the denoiser: the answer that the pipeline brought, once; else a question."""
        answer, self._answer = self._answer, None
        if answer is None:
            raise _Ask(x)
        return answer


def _asked(plan: Plan) -> list[int]:
    """The states at which the network is called, in the order of the calls."""
    return list(dict.fromkeys(i for row in plan.rows for kind, i in row.terms or () if kind in PREDICTED))
