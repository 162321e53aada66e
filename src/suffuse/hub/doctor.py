"""Is this network read as it was meant? Measured: how well it denoises, and whether another reading denoises better.

error = mean over noise levels of log(|x0(x_t) - x0|^2 / Var(x0) + 1/100)

The right reading has the least error that any can have, since the network was trained for just that. Noise levels are
those at which the data itself, of whatever range, keeps the same share of x_t.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser, evaluating, networks
from suffuse.parameterize import Parameterization, edm, eps, v, velocity, x0
from suffuse.random import noise
from suffuse.schedules import VE, VP, Cosine, Discrete, Linear, Schedule

__all__ = ["Diagnosis", "Finding", "check"]

LEVELS = (-3.0, -1.5, 0.0, 1.5, 3.0)  # logsnr of data of unit variance
_STREAM = 0xD0C7
_MARGIN = 0.05  # of the error; less is no finding
_TIE = 0.02  # between two findings the commoner one, which is tried first, is named

_TO_DATA = Parameterization(
    "velocity to data", lambda schedule, t, a, s: tuple(-c for c in velocity.row(schedule, t, a, s))
)


def _steps(schedule: Schedule) -> int:
    return schedule.steps if isinstance(schedule, Discrete) else 1000


CLOCKS: dict[str, Callable[[Schedule, Any], Any]] = {
    "t": lambda schedule, t: t,
    "1 - t": lambda schedule, t: 1 - t,
    "index": lambda schedule, t: t * _steps(schedule) - 1,
    "last index - index": lambda schedule, t: (1 - t) * _steps(schedule),
    "sigma/alpha": lambda schedule, t: schedule(t)[1] / schedule(t)[0],
    "log(sigma/alpha)/4": lambda schedule, t: -schedule.logsnr(t) / 8,
}
ROWS = (eps, x0, v, velocity, _TO_DATA)
SCHEDULES: dict[str, Schedule] = {
    "Linear()": Linear(),
    "Linear().shift(3)": Linear().shift(3.0),
    "Linear().shift(1/3)": Linear().shift(1 / 3),
    "Cosine()": Cosine(),
    "VP()": VP(),
    "VE()": VE(),
    "Discrete.ddpm()": Discrete.ddpm(),
    "Discrete.scaled_linear()": Discrete.scaled_linear(),
    "Discrete.cosine()": Discrete.cosine(),
    "Discrete.scaled_linear().zero_terminal_snr()": Discrete.scaled_linear().zero_terminal_snr(),
}
RANGES: dict[str, tuple[float, float]] = {  # y = a x + b
    "x in [-1, 1] as (x + 1) / 2": (0.5, 0.5),
    "x in [0, 1] as 2 x - 1": (2.0, -1.0),
    "x in [-1, 1] as 127.5 (x + 1)": (127.5, 127.5),
    "x in [0, 255] as x / 127.5 - 1": (1 / 127.5, -1.0),
}
SCALES = (0.18215, 0.13025, 0.3611, 1.5305)  # of Stable Diffusion 1 and 2, XL, Flux and SD3


@dataclass(frozen=True)
class Reading:
    """One way to read a network: the denoiser it makes, and what the data is mapped to by y = a x + b."""

    model: Denoiser
    data: tuple[float, float] = (1.0, 0.0)
    names: tuple[str, str, str, str] = ("as claimed", "as claimed", "as claimed", "as claimed")


@dataclass(frozen=True)
class Finding:
    """An aspect in which another reading denoises better: what it is, what is claimed, what fits, and both errors."""

    aspect: str
    claimed: str
    fits: str
    before: float
    after: float

    def __str__(self) -> str:
        better = f"error {self.before:.2f} -> {self.after:.2f}"
        return f"{self.aspect}: {self.claimed} was claimed, {self.fits} fits better ({better})"


@dataclass(frozen=True)
class Diagnosis:
    """What `check` found.

    Attributes:
        findings: one an aspect in which another reading fits better; empty is healthy.
        error: of the reading that is claimed. best: of the one that fits best.
        readings: how many were tried.
    """

    findings: tuple[Finding, ...]
    error: float
    best: float
    readings: int

    @property
    def healthy(self) -> bool:
        """Whether no other reading fits better."""
        return not self.findings

    def __str__(self) -> str:
        if self.healthy:
            return f"healthy: none of {self.readings} other readings denoises better (error {self.error:.2f})"
        return "\n".join(map(str, self.findings))


def check(denoiser: Denoiser, images: Tensor, *, seed: int = 0) -> Diagnosis:
    """Find by measurement whether parameterization, told time, schedule and data range are the right ones.

    Some hundred readings are tried, each by one evaluation of the network with five rows for every image.

    Args:
        denoiser: a `Denoiser`, with the conditions it needs bound.
        images: (B, ...) clean data such as it was trained on: what it denoises, or what its codec encodes. At least 4.
        seed: of the noise.
    Returns:
        A `Diagnosis`; print it.
    Raises:
        TypeError: the denoiser is made of others, so that there is nothing to read in another way.
        ValueError: fewer than 4 images, or no variance in them.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"check reads a network in other ways: give it a Denoiser, not a {type(denoiser).__name__}")
    if len(images) < 4 or not images.float().std() > 0:
        raise ValueError(f"images must be at least 4 that are not all the same, got shape {tuple(images.shape)}")
    latent = denoiser.codec is not None and (denoiser.shape is None or images.shape[1] != denoiser.shape[0])
    with evaluating([m for net in networks(denoiser) for m in net.modules()]), torch.no_grad():
        data = denoiser.codec.encode(images, seed) if latent and denoiser.codec else images
        draws = noise((len(LEVELS), *data.shape), seed, stream=_STREAM, device=data.device, dtype=data.dtype)
        best, tried = Reading(denoiser), 1
        errors = claimed = _errors(best, data, draws)
        for _ in range(4):
            found = None
            for other in _neighbours(best, denoiser, latent or denoiser.codec is not None):
                tried += 1
                new = _errors(other, data, draws)
                gain = errors - new
                sure = gain.mean() > max(_MARGIN, 3 * float(gain.std()) / len(gain) ** 0.5)
                if sure and (found is None or _cost(other, new) < _cost(*found) - _TIE):
                    found = other, new
            if found is None:
                break
            best, errors = found
    before, after = claimed.mean().item(), errors.mean().item()
    findings = [
        Finding(aspect, was, name, before, after)
        for aspect, was, name in zip(ASPECTS, _claims(denoiser), best.names, strict=True)
        if name != "as claimed"
    ]
    return Diagnosis(tuple(findings), before, after, tried - 1)


def _cost(reading: Reading, errors: Tensor) -> float:
    """The error, and a little for every aspect that is changed: of readings that fit alike, the nearest."""
    return errors.mean().item() + _MARGIN * sum(name != "as claimed" for name in reading.names)


ASPECTS = ("parameterization", "told time", "schedule", "data")


def _claims(model: Denoiser) -> tuple[str, str, str, str]:
    p = model.parameterization
    told = next((name for name, clock in CLOCKS.items() if _same_clock(model, clock)), f"that of {p.name}")
    return p.name, told, str(model.schedule), "as given"


def _same_clock(model: Denoiser, clock: Callable[..., Any]) -> bool:
    tells = model.parameterization.tells or CLOCKS["t"]
    try:
        return all(abs(tells(model.schedule, t) - clock(model.schedule, t)) < 1e-6 for t in (0.25, 0.5, 0.9))
    except (ArithmeticError, ValueError):
        return False


def _neighbours(now: Reading, claimed: Denoiser, latent: bool) -> Iterator[Reading]:
    """Readings that differ in parameterization and told time, or in the schedule, or in the data's range."""
    p, at = now.model.parameterization, claimed.parameterization
    own: tuple[tuple[str, Any], ...] = (("as claimed", at.tells),)
    clocks = own + tuple((name, clock) for name, clock in CLOCKS.items() if not _same_clock(claimed, clock))
    rows = ((p.name, p.row), *((row.name, row.row) for row in ROWS if row.name != p.name))
    for (name, row), (clock, tells) in itertools.product(rows, clocks):
        names = ("as claimed" if name == at.name else name, clock, *now.names[2:])
        if names != now.names:
            yield _read(now, replace(p, name=name, row=row, tells=tells), now.model.schedule, names)
    if not at.name.startswith("edm"):
        yield _read(now, edm(), now.model.schedule, ("edm", "log(sigma/alpha)/4", *now.names[2:]))
    for name, schedule in (("as claimed", claimed.schedule), *SCHEDULES.items()):
        if schedule != now.model.schedule:
            yield _read(now, p, schedule, (*now.names[:2], name, now.names[3]))
    scale = getattr(claimed.codec, "scale", 1.0)
    other = {f"latents times {c:g} instead of {scale:g}": (c / scale, 0.0) for c in (1.0, *SCALES) if c != scale}
    for name, data in {"as claimed": (1.0, 0.0), **(other if latent else RANGES)}.items():
        if name != now.names[3]:
            yield replace(now, data=data, names=(*now.names[:3], name))


def _read(now: Reading, p: Parameterization, schedule: Schedule, names: Any) -> Reading:
    model = copy.copy(now.model)
    model.parameterization, model.schedule = p, schedule
    return replace(now, model=model, names=names)


def _errors(reading: Reading, data: Tensor, draws: Tensor) -> Tensor:
    """The error of every item, (B,); large where the reading makes no sense."""
    (a, b), model = reading.data, reading.model
    y, schedule = a * data + b, reading.model.schedule
    spread = float(y.std())
    first = 1 / schedule.steps if isinstance(schedule, Discrete) else 1e-3
    times = [min(max(schedule.time(level - 2 * math.log(spread)), first), 1.0) for level in LEVELS]
    t = torch.tensor(times, device=y.device).repeat_interleave(len(y))
    many = y.repeat(len(LEVELS), *[1] * (y.ndim - 1))
    alpha, sigma = schedule(t, like=many)
    try:
        out = model.rows(torch.arange(len(y)).repeat(len(LEVELS)))(alpha * many + sigma * draws.flatten(0, 1), t).x0
    except (ValueError, ArithmeticError, AssertionError, IndexError):
        return torch.full((len(y),), 50.0, device=y.device)
    error = ((out - many) ** 2).flatten(1).mean(1) / spread**2
    return (
        torch.nan_to_num(torch.log(error + 0.01), nan=50.0, posinf=50.0)
        .clamp(max=50.0)
        .unflatten(0, (-1, len(y)))
        .mean(0)
    )
