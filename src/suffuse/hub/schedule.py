"""diffusers' scheduler configs as a schedule and a parameterization.

A scheduler there is a table of betas or a flow's time shift, what the network predicts, and a way to sample; the last
is not read.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse.parameterize import Parameterization, named
from suffuse.schedules import Discrete, Linear, Schedule
from suffuse.training.files import read_json

__all__ = ["FLOW", "index", "read_schedule", "times"]

_KINDS = (
    "DDIM DDPM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete "
    "DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep"
)
_PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
# keys that say how to sample, not what the model is
_SAMPLING = (
    "clip_sample clip_sample_range set_alpha_to_one steps_offset thresholding dynamic_thresholding_ratio "
    "sample_max_value timestep_spacing skip_prk_steps algorithm_type solver_type solver_order solver_p "
    "lower_order_final euler_at_final final_sigmas_type lambda_min_clipped use_karras_sigmas use_exponential_sigmas "
    "use_beta_sigmas use_lu_lambdas interpolation_type sigma_min sigma_max predict_x0 disable_corrector"
)
# keys that would change the schedule or the network's output, and the values that leave both alone
_ONLY = {
    "timestep_type": ("discrete",),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_FLOW = (
    "shift flow_shift use_flow_sigmas use_dynamic_shifting base_shift max_shift base_image_seq_len max_image_seq_len "
    "time_shift_type shift_terminal"
)
_SCHEDULE = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"}
_KNOWN = (
    _SCHEDULE
    | set(_FLOW.split())
    | {"rescale_betas_zero_snr", "prediction_type"}
    | set(_SAMPLING.split())
    | _ONLY.keys()
)


def read_schedule(file: Path, kind: str, library: Any, tokens: int | None = None) -> tuple[Schedule, Parameterization]:
    """The schedule a model was trained on, and what its output means, from a scheduler_config.json.

    A network on a table of betas is told the index t T - 1, a flow's network sigma in [0, 1].

    Args:
        file: scheduler_config.json.
        kind: the scheduler's class, whose defaults fill in what the file leaves out.
        library: diffusers.
        tokens: how many a transformer sees at the wanted size, where a flow's time shift depends on it.
    Raises:
        ModelFileError: the file is missing or is not JSON.
        ValueError: a scheduler, key, prediction type or table of betas that is not supported.
    """
    return schedule_of(read_json(file), kind, library, file, tokens)


def schedule_of(
    config: Mapping[str, Any], kind: str, library: Any, file: Any, tokens: int | None = None
) -> tuple[Schedule, Parameterization]:
    """The same, of a config that is read already; `file` is what errors say it is."""
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    kinds = [*(f"{name}Scheduler" for name in _KINDS.split()), *_FLOWS]
    if kind not in kinds:
        raise ValueError(f"{file}: {kind} is not supported; supported are {', '.join(kinds)}")
    unknown = sorted(given.keys() - _KNOWN)
    if unknown:
        raise ValueError(
            f"{file}: unknown key {unknown[0]!r}, which may change the schedule; known are {sorted(_KNOWN)}"
        )
    for key, allowed in _ONLY.items():
        if key in given and given[key] not in allowed:
            raise ValueError(f"{file}: {key}={given[key]!r} is not supported, only {' or '.join(map(repr, allowed))}")
    signature = inspect.signature(getattr(library, kind).__init__).parameters
    full = {k: p.default for k, p in signature.items() if p.default is not p.empty} | given
    if kind in _FLOWS or full.get("use_flow_sigmas"):
        return Linear().shift(_shift(file, full, tokens)), FLOW
    predicts = full["prediction_type"]
    if predicts not in _PREDICTS:
        raise ValueError(f"{file}: prediction type {predicts!r} is not supported; supported are {', '.join(_PREDICTS)}")
    schedule = _betas(file, full)
    if full.get("rescale_betas_zero_snr"):
        schedule = schedule.zero_terminal_snr()
    return schedule, dataclasses.replace(named(_PREDICTS[predicts]), tells=index)


def _shift(file: Any, config: dict[str, Any], tokens: int | None) -> float:
    """The factor that a flow's sigma/alpha is multiplied with: one number, or one that grows with the picture.

    log s = linear in the number of tokens, through two points of the config.   Esser et al. 2024, section 5.3.2.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", config.get("flow_shift")) or 1.0)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    if tokens is None:
        raise ValueError(
            f"{file}: the time shift depends on the picture, and the network's config has no size: say size="
        )
    mu = low + (high - low) * (tokens - few) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


def _betas(file: Any, config: dict[str, Any]) -> Discrete:
    steps, low, high = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    trained, family = config.get("trained_betas"), config["beta_schedule"]
    if trained is not None:
        if len(trained) != steps:
            raise ValueError(f"{file}: {len(trained)} trained_betas, but num_train_timesteps is {steps}")
        return Discrete(tuple(trained))
    if family not in _BETAS:
        raise ValueError(f"{file}: beta schedule {family!r} is not supported; supported are {', '.join(_BETAS)}")
    if family == "squaredcos_cap_v2":
        return Discrete.cosine(steps)
    return (Discrete.ddpm if family == "linear" else Discrete.scaled_linear)(steps, low, high)


def index(schedule: Schedule, t: float | Tensor) -> float | Tensor:
    """t T - 1, which is exactly a whole number at the table's points and at least 0: what the network is told of t."""
    assert isinstance(schedule, Discrete)
    value = t * schedule.steps - 1
    if isinstance(value, Tensor):
        whole = value.round()
        return torch.where((value - whole).abs() < 1e-3, whole, value).clamp_min(0)
    whole = round(value)
    return max(float(whole) if abs(value - whole) < 1e-3 else value, 0.0)


# eps - x0 at every sigma, whatever t is; told sigma
FLOW = Parameterization("flow", lambda schedule, t, alpha, sigma: (-1.0, 1.0), tells=lambda schedule, t: schedule(t)[1])


def times(scheduler: Any, schedule: Schedule) -> list[float]:
    """The times that a scheduler of diffusers visits, as a grid for `sample`, to compare with its pipelines.

    Args:
        scheduler: after its `set_timesteps`.
        schedule: of the model that was read from the same folder.
    Returns:
        Falling times, from the first one visited to the end (clean data, or the first index of the table).
    """
    if isinstance(schedule, Discrete):
        levels = getattr(scheduler, "final_alpha_cumprod", None)
        end = 0.0 if levels is None or float(levels) == 1 else 1 / schedule.steps
        visited = dict.fromkeys(float(i) for i in scheduler.timesteps)  # some solvers visit a time twice
        return [(i + 1) / schedule.steps for i in visited] + [end]
    sigmas = [float(s) for s in scheduler.sigmas]
    logsnr = [math.inf if s == 0 else -math.inf if s == 1 else 2 * math.log((1 - s) / s) for s in sigmas]
    return [0.0 if v == math.inf else 1.0 if v == -math.inf else schedule.time(v) for v in logsnr]
