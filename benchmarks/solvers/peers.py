"""Other libraries' samplers on a world of known flow: every one gets the exact prediction at the level it is really at.

A peer is favoured wherever it could be: it starts from the exact state at its own first noise level and is compared
with the exact flow at its own last; the noise level is read off its own table, also where the integer timestep that
it would tell a network is rounded.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from worlds import Truth

import suffuse as sf

Peer = Callable[[Truth, sf.schedules.Schedule, int], tuple[Tensor, float, int] | None]
"""(truth, schedule, nfe) -> (x, rho where it ended, calls made), or None where it cannot be."""


TWO_STAGES = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
VARIANCE_PRESERVING = (  # these know no flow
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
)


class Counted:
    """The world's x0 at (x/alpha, rho), counting calls."""

    def __init__(self, truth: Truth) -> None:
        self.truth, self.calls = truth, 0

    def __call__(self, y: Tensor, rho: float) -> Tensor:
        self.calls += 1
        return self.truth.mixture.moments(y.double(), 1.0, rho)[0]


def _alpha(rho: float, flow: bool) -> float:
    return 1 / (1 + rho) if flow else 1 / math.sqrt(1 + rho * rho)


def _rho(sigma: float, flow: bool) -> float:
    """sigma/alpha of a value in a scheduler's table; flow tables hold sigma itself."""
    return (sigma / (1 - sigma) if sigma < 1 else math.inf) if flow else sigma


def _answer(predicts: str, y: Tensor, x0: Tensor, rho: float) -> Tensor:
    if predicts == "sample":
        return x0
    eps = (y - x0) / rho
    return eps - x0 if predicts == "flow_prediction" else eps


def diffusers_peer(name: str, scaled: str, options: dict[str, Any]) -> Peer:
    """A scheduler of diffusers.

    Args:
        scaled: what its state is: "x" (alpha x0 + sigma eps), or "y" = x/alpha.
        options: of its constructor; the schedule's own are added.
    """

    def peer(truth: Truth, schedule: sf.schedules.Schedule, nfe: int) -> tuple[Tensor, float, int] | None:
        import diffusers
        from diffusers.utils import logging

        logging.set_verbosity_error()
        flow = not isinstance(schedule, sf.schedules.Discrete)
        given = dict(options)
        if name.startswith("FlowMatch"):
            if not flow:
                return None
            given["shift"] = _shift(schedule) * given.get("shift", 1.0)
        elif name.startswith("EDM"):
            given |= {"sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 1.0}
        elif flow:
            given |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            given["flow_shift"] = _shift(schedule) * given.get("flow_shift", 1.0)
        else:
            if "flow_shift" in given:
                return None
            given["trained_betas"] = list(schedule.betas)
        kind = getattr(diffusers, name)
        if flow and name in VARIANCE_PRESERVING:
            return None
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            n = (nfe + 1) // 2 if kind.__name__ in TWO_STAGES else nfe
            scheduler = kind(**given)
            scheduler.set_timesteps(n)
            if n < 1 or len(scheduler.timesteps) > nfe:
                return None
            return _drive(scheduler, scaled, truth, flow)

    return peer


def _shift(schedule: sf.schedules.Schedule) -> float:
    return schedule.factor if isinstance(schedule, sf.schedules.Shifted) else 1.0


def _drive(scheduler: Any, scaled: str, truth: Truth, flow: bool) -> tuple[Tensor, float, int] | None:
    predicts = scheduler.config.get("prediction_type", "flow_prediction" if flow else "epsilon")
    edm, d = type(scheduler).__name__.startswith("EDM"), Counted(truth)
    table = getattr(scheduler, "sigmas", None)

    def level(i: int, t: Any) -> float:
        if edm:
            return float(table[i])
        if table is None:  # DDIM, PNDM
            a = float(scheduler.alphas_cumprod[int(t)])
            return math.sqrt((1 - a) / a)
        if hasattr(scheduler, "sigmas_interpol") and i % 2:  # KDPM2's half steps
            return _rho(float(scheduler.sigmas_interpol[i]), flow)
        return _rho(float(table[i]), flow)

    first = level(0, scheduler.timesteps[0])
    if first < 20:  # it would be spared a part of the way
        return None
    x = truth.at(first) if math.isfinite(first) else truth.noise
    if scaled == "x" and math.isfinite(first):
        x = x * _alpha(first, flow)
    for i, t in enumerate(scheduler.timesteps):
        rho = level(i, t)
        if not math.isfinite(rho):
            x0 = truth.mixture.log_weights.exp() @ truth.mixture.flat + 0 * x
            d.calls += 1
            answer = x - x0 if predicts == "flow_prediction" else x
        else:
            y = x if scaled == "y" else x / _alpha(rho, flow)
            x0 = d(y, rho)
            if edm:
                skip, out = 1 / (1 + rho * rho), rho / math.sqrt(1 + rho * rho)
                answer = (x0 - skip * y) / out
            else:
                answer = _answer(predicts, y, x0, rho)
        x = scheduler.step(answer, t, x, return_dict=False)[0].double()
        if not math.isfinite(x[0, 0].item()):
            return None
    last = float(table[-1]) if table is not None and len(table) > len(scheduler.timesteps) else 0.0
    if type(scheduler).__name__ in ("DDIMScheduler", "PNDMScheduler"):
        a = 1.0 if scheduler.config.set_alpha_to_one else float(scheduler.alphas_cumprod[0])
        last = math.sqrt((1 - a) / a)
    last = _rho(last, flow)
    return (x if scaled == "y" else x / _alpha(last, flow)), last, d.calls


def azula_peer(name: str, options: dict[str, Any], warp: str) -> Peer:
    """A sampler of azula on our schedule, its times even in t, or (by a schedule of one's own) in log rho."""

    def peer(truth: Truth, schedule: sf.schedules.Schedule, nfe: int) -> tuple[Tensor, float, int] | None:
        try:
            import azula.denoise
            import azula.noise
            import azula.sample
        except ImportError:
            return None
        d = Counted(truth)
        # azula's own schedules go from rho of about 1e3 to 1e-3, and its samplers divide by alpha and sigma
        low, high = schedule.time(2 * math.log(1e3)), max(schedule.logsnr(1.0), -2 * math.log(1e3))
        top = schedule.time(high)
        if isinstance(schedule, sf.schedules.Discrete):
            low = max(low, 1 / schedule.steps)
        ends = schedule.logsnr(low), high

        class Ours(azula.noise.Schedule):
            def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
                if warp == "t":
                    return schedule(low + (top - low) * t.double())
                at = ends[0] + (ends[1] - ends[0]) * t.double()
                return schedule(torch.as_tensor(schedule.time(at)))

            def alpha(self, t: Tensor) -> Tensor:
                return self(t)[0]

            def sigma(self, t: Tensor) -> Tensor:
                return self(t)[1]

        class Asked(azula.denoise.Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = Ours()

            def forward(self, x: Tensor, t: Tensor) -> Any:
                alpha, sigma = (float(v) for v in self.schedule(t))
                return azula.denoise.DiracPosterior(d(x / alpha, sigma / alpha))

        model = Asked()
        steps = nfe // 2 if name == "HeunSampler" else nfe
        if steps < 1:
            return None
        run = getattr(azula.sample, name)(model, steps=steps, silent=True, dtype=torch.float64, **options)
        begin, end = ([float(v) for v in model.schedule(torch.tensor(t, dtype=torch.float64))] for t in (1.0, 0.0))
        x = run(truth.at(begin[1] / begin[0]) * begin[0])
        return x / end[0], end[1] / end[0], d.calls

    return peer


def peers() -> dict[str, Peer]:
    """Every deterministic configuration that is tried, by name."""
    found: dict[str, Peer] = {}
    spaced: dict[str, dict[str, Any]] = {
        "": {"timestep_spacing": "linspace"},
        " trailing": {"timestep_spacing": "trailing"},
        " karras": {"use_karras_sigmas": True},
        " exponential": {"use_exponential_sigmas": True},
        " beta": {"use_beta_sigmas": True},
        " shift 3": {"flow_shift": 3.0},
    }

    def add(kind: str, label: str, scaled: str, options: dict[str, Any]) -> None:
        found[f"diffusers {label}"] = diffusers_peer(kind, scaled, options)

    for spacing, o in spaced.items():
        for order in (2, 3):
            add("DPMSolverMultistepScheduler", f"DPM++ {order}M{spacing}", "x", {"solver_order": order, **o})
            add("DEISMultistepScheduler", f"DEIS {order}{spacing}", "x", {"solver_order": order, **o})
        for order, variant in itertools.product((1, 2, 3), ("bh1", "bh2") if spacing == "" else ("bh2",)):
            add(
                "UniPCMultistepScheduler",
                f"UniPC-{order} {variant}{spacing}",
                "x",
                {"solver_order": order, "solver_type": variant, **o},
            )
        add(
            "SASolverScheduler",
            f"SA-Solver 3/4 tau 0{spacing}",
            "x",
            {"predictor_order": 3, "corrector_order": 4, "tau_func": lambda t: 0.0, **o},
        )
    for order in (2, 3):
        add("DPMSolverMultistepScheduler", f"DPM++ {order}M lu", "x", {"solver_order": order, "use_lu_lambdas": True})
        for grid in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"flow_shift": 3.0}):
            label = next(iter(grid), "").replace("use_", " ").replace("_sigmas", "").replace("flow_shift", " shift 3")
            add("DPMSolverSinglestepScheduler", f"DPM++ {order}S{label}", "x", {"solver_order": order, **grid})
    for kind, label in (
        ("EulerDiscrete", "Euler"),
        ("HeunDiscrete", "Heun"),
        ("KDPM2Discrete", "DPM2"),
        ("LMSDiscrete", "LMS"),
    ):
        for spacing in ("", " karras", " exponential", " beta"):
            add(f"{kind}Scheduler", f"{label}{spacing}", "y", spaced[spacing])
    add("DDIMScheduler", "DDIM trailing", "x", {"timestep_spacing": "trailing", "clip_sample": False})
    add(
        "PNDMScheduler",
        "PLMS trailing",
        "x",
        {"timestep_spacing": "trailing", "skip_prk_steps": True, "set_alpha_to_one": True},
    )
    add("FlowMatchEulerDiscreteScheduler", "flow Euler", "x", {})
    add("FlowMatchEulerDiscreteScheduler", "flow Euler shift 3", "x", {"shift": 3.0})
    add("FlowMatchHeunDiscreteScheduler", "flow Heun", "x", {})
    for order in (2, 3):
        for grid in ("karras", "exponential"):
            add(
                "EDMDPMSolverMultistepScheduler",
                f"EDM DPM++ {order}M {grid}",
                "y",
                {"solver_order": order, "sigma_schedule": grid, "final_sigmas_type": "zero"},
            )
    for warp, label in (("t", ""), ("logsnr", " even in log rho")):
        for kind in ("EulerSampler", "HeunSampler"):
            found[f"azula {kind}{label}"] = azula_peer(kind, {}, warp)
        for kind, order in itertools.product(("zAB", "vAB", "zEAB", "xEAB", "REAB"), (2, 3, 4)):
            found[f"azula {kind} {order}{label}"] = azula_peer(f"{kind}Sampler", {"order": order}, warp)
    return found


def attempt(peer: Peer, truth: Truth, schedule: sf.schedules.Schedule, nfe: int) -> tuple[Tensor, float, int] | None:
    """What the peer makes within the budget; None for a configuration that its library refuses or runs into nan."""
    try:
        made = peer(truth, schedule, nfe)
    except (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    return made if made is not None and made[2] <= nfe and bool(torch.isfinite(made[0]).all()) else None
