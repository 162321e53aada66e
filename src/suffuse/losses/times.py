"""Which noise levels to train on: functions (n, device) -> (n,) times; t = 0 is data, t = 1 is noise.

All but `uniform` are quantile functions of `stratified`, so a batch always covers its density. Their options are
bound with `functools.partial(log_normal, schedule=model.schedule)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from suffuse.schedules import Linear, Schedule

__all__ = [
    "Times",
    "cosmap",
    "log_normal",
    "logit_normal",
    "mode",
    "shifted",
    "stratified",
    "uniform",
    "uniform_logsnr",
]

Times = Callable[[int, torch.device], Tensor]


def uniform(n: int, device: torch.device) -> Tensor:
    """t ~ U(0, 1), (n,)."""
    return torch.rand(n, device=device)


def stratified(n: int, device: torch.device) -> Tensor:
    """t ~ U(0, 1) with one draw in each of n equal parts: the same expectation, less variance (Kingma et al. 2021)."""
    if has_torch_function((device,)):  # a mode is on, as where n rows are one process's part of a larger batch
        return handle_torch_function(stratified, (), n, device)
    return ((torch.arange(n, device=device) + torch.rand(n, device=device)) / n)[torch.randperm(n, device=device)]


def _normal(n: int, device: torch.device) -> Tensor:
    return torch.special.ndtri(stratified(n, device).clamp(1e-6, 1 - 1e-6))


def logit_normal(n: int, device: torch.device, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) ~ N(mean, std^2): more of the middle, where a flow is hard (Esser et al. 2024, eq. 19).

    Args:
        mean: above 0 leans to noise. std: below 1 gathers, above 1 spreads.
    """
    z = _normal(n, device)
    return torch.special.expit(z if (mean, std) == (0.0, 1.0) else mean + std * z)


def mode(n: int, device: torch.device, *, scale: float = 1.29) -> Tensor:
    """t = 1 - u - s (cos^2(pi u / 2) - 1 + u): more of the middle, with every time kept (Esser et al. 2024, eq. 20).

    Args:
        scale: s in [-1, 2/(pi - 2)], where t falls in u; 0 is uniform, below 0 means more of the ends.
    Raises:
        ValueError: scale out of range.
    """
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"scale must be in [-1, {2 / (math.pi - 2):.3f}], got {scale:g}")
    u = stratified(n, device)
    return 1 - u - scale * ((math.pi / 2 * u).cos() ** 2 - 1 + u)


def cosmap(n: int, device: torch.device) -> Tensor:
    """t = 1 - 1/(tan(pi u / 2) + 1): on the linear flow, the logsnr of uniform times of `Cosine`.

    Esser et al. 2024, eq. 21.
    """
    u = math.pi / 2 * stratified(n, device)
    return u.sin() / (u.sin() + u.cos())


def log_normal(n: int, device: torch.device, *, schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """log(sigma/alpha) ~ N(mean, std^2), on any schedule: EDM's training noise (Karras et al. 2022, table 1).

    Args:
        schedule: of the model; levels it never reaches are its t = 1.
        mean, std: P_mean and P_std.
    """
    return _at(schedule, -2 * (mean + std * _normal(n, device)))


def uniform_logsnr(
    n: int, device: torch.device, *, schedule: Schedule, low: float = -10.0, high: float = 10.0
) -> Tensor:
    """logsnr ~ U(low, high), on any schedule: the measure in which the likelihood's bound weighs eps evenly.

    Args:
        schedule: of the model. low, high: of logsnr; levels it never reaches are its t = 1.
    Kingma et al. 2021, section 5.
    """
    return _at(schedule, low + (high - low) * stratified(n, device))


def shifted(
    n: int, device: torch.device, *, factor: float, times: Times = stratified, schedule: Schedule | None = None
) -> Tensor:
    """Times of `times`, moved to where sigma/alpha is `factor` times larger: what a higher resolution needs.

    logsnr -> logsnr - 2 log factor; on the linear flow t -> s t / (1 + (s - 1) t).

    Args:
        factor: sqrt(pixels / pixels that `times` was chosen for), or side / 64 of Hoogeboom et al.
        times: what is moved. schedule: of the model, by default linear.
    Raises:
        ValueError: factor is not positive.
    Esser et al. 2024, eq. 23; Hoogeboom et al. 2023, eq. 4.
    """
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor:g}")
    schedule = schedule or Linear()
    return _at(schedule, schedule.logsnr(times(n, device)) - 2 * math.log(factor))


def _at(schedule: Schedule, logsnr: Tensor) -> Tensor:
    return schedule.time(logsnr.clamp(min=max(schedule.logsnr(1.0), -40.0))).clamp(0, 1)
