"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 the data and t = 1 the noise.

A schedule is one curve in the (alpha, sigma) plane from (1, 0), and the speed at which t walks along it.
A float gives floats (in float64), a tensor gives tensors of its own dtype and device.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

__all__ = ["VE", "VP", "Cosine", "Discrete", "Linear", "Schedule", "Shifted"]

Time = Any  # a float or a Tensor; what goes in comes out


def _lib(value: Any) -> Any:
    """The library whose `exp`, `log`, `sin`... act on this value: `torch` for tensors, `math` for floats."""
    return torch if isinstance(value, Tensor) else math


def _log(value: Time) -> Time:
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf


def _sigmoid(value: Time) -> Time:
    if isinstance(value, Tensor):
        return value.sigmoid()
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _softplus(value: Time) -> Time:
    if isinstance(value, Tensor):
        return torch.nn.functional.softplus(value, threshold=40)
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def left(value: Tensor, like: Tensor) -> Tensor:
    """Broadcast from the left: (B,) against (B, C, H, W) becomes (B, 1, 1, 1), in the dtype of `like`."""
    if value.shape != like.shape[: value.ndim]:
        raise ValueError(
            f"times of shape {tuple(value.shape)} do not fit data of shape {tuple(like.shape)}: "
            "they must be () or the data's leading sizes"
        )
    return value.to(like).reshape(value.shape + (1,) * (like.ndim - value.ndim))


class Schedule:
    """The contract: `schedule(t)`, `rates(t)`, `logsnr(t)`, `time(logsnr)`, `norm(alpha, sigma) = 1`.

    logsnr = log(alpha^2 / sigma^2), falling in t. Immutable: a transform returns a new schedule.
    """

    @overload
    def __call__(self, t: float, like: None = None) -> tuple[float, float]: ...
    @overload
    def __call__(self, t: Tensor, like: None = None) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(self, t: float | Tensor, like: Tensor) -> tuple[Any, Any]: ...
    def __call__(self, t: Any, like: Tensor | None = None) -> tuple[Any, Any]:
        """(alpha, sigma) at time t.

        Args:
            t: time in [0, 1]; a float, or a tensor (), (B,) or (B, F...).
            like: data (B, ...) that the two numbers will multiply; they are then shaped and typed to broadcast
                against it from the left.
        Raises:
            ValueError: t outside [0, 1] (not looked for on an accelerator); t that does not fit `like`.
        """
        if not isinstance(t, Tensor):
            known = self.__dict__.setdefault("_known", {})  # a plan asks when it is built, and again when it runs
            if t not in known:
                if not 0.0 <= t <= 1.0:
                    raise ValueError(f"t must be in [0, 1] (0 is data, 1 is noise), got {t:g}")
                if len(known) >= 4096:
                    known.clear()
                known[t] = self.pair(float(t))
            return known[t]
        if t.device.type == "cpu" and not torch.compiler.is_compiling():  # never ask an accelerator: it would wait
            outside = t[(t < 0) | (t > 1)]
            if len(outside):
                raise ValueError(f"t must be in [0, 1] (0 is data, 1 is noise), got {outside[0].item():g}")
        alpha, sigma = self.pair(t)
        return (alpha, sigma) if like is None else (left(alpha, like), left(sigma, like))

    def pair(self, t: Time) -> tuple[Time, Time]:
        """(alpha, sigma), the formula itself."""
        raise NotImplementedError

    def norm(self, alpha: Time, sigma: Time) -> Time:
        """The homogeneous function of (alpha, sigma) that is 1 along the curve, e.g. hypot for variance preserving."""
        raise NotImplementedError

    def norm_rate(self, alpha: Time, sigma: Time, da: Time, ds: Time) -> Time:
        """The derivative of `norm` along (da, ds)."""
        raise NotImplementedError

    def time(self, logsnr: Time) -> Time:
        """The t at which log(alpha^2 / sigma^2) takes this value: the inverse of `logsnr`."""
        raise NotImplementedError

    def logsnr(self, t: Time) -> Time:
        """log(alpha^2 / sigma^2) at t: +inf at t = 0, and -inf at t = 1 where alpha(1) = 0."""
        alpha, sigma = self.pair(t)
        if isinstance(t, Tensor):
            return 2 * (_log(alpha) - _log(sigma))
        return math.inf if sigma == 0 else 2 * (_log(alpha) - _log(sigma))

    def rates(self, t: Time) -> tuple[Time, Time]:
        """(d alpha / dt, d sigma / dt)."""
        raise NotImplementedError

    def shift(self, factor: float) -> Shifted:
        """The same family of curve with sigma/alpha multiplied by `factor` at every t.

        On `Linear` it is t -> s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23); on a variance preserving schedule
        logsnr - 2 log s (Hoogeboom et al. 2023, eq. 4 with s = image size / 64).
        """
        return Shifted(self, float(factor))

    def to_json(self) -> dict[str, Any]:
        """{"type": name, ...fields}: what `from_json` rebuilds."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        fields = {k: v.to_json() if isinstance(v, Schedule) else v for k, v in fields.items()}
        return {"type": type(self).__name__, **fields}


@dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t, sigma = t: rectified flow and optimal-transport flow matching (Liu et al. 2022, eq. 1)."""

    def pair(self, t: Time) -> tuple[Time, Time]:
        return 1 - t, t

    def norm(self, alpha: Time, sigma: Time) -> Time:
        return alpha + sigma

    def norm_rate(self, alpha: Time, sigma: Time, da: Time, ds: Time) -> Time:
        return da + ds

    def rates(self, t: Time) -> tuple[Time, Time]:
        return (-torch.ones_like(t), torch.ones_like(t)) if isinstance(t, Tensor) else (-1.0, 1.0)

    def time(self, logsnr: Time) -> Time:
        return _sigmoid(-logsnr / 2)


class _VariancePreserving(Schedule):
    def norm(self, alpha: Time, sigma: Time) -> Time:
        return _lib(alpha).hypot(alpha, sigma)

    def norm_rate(self, alpha: Time, sigma: Time, da: Time, ds: Time) -> Time:
        return (alpha * da + sigma * ds) / self.norm(alpha, sigma)


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Nichol & Dhariwal 2021, eq. 17 with s = 0)."""

    def pair(self, t: Time) -> tuple[Time, Time]:
        quarter = math.pi / 2
        return _lib(t).sin(quarter * (1 - t)), _lib(t).sin(quarter * t)  # sin(1 - t): exactly 0 at t = 1

    def rates(self, t: Time) -> tuple[Time, Time]:
        alpha, sigma = self.pair(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def time(self, logsnr: Time) -> Time:
        half = logsnr / 2
        if isinstance(half, Tensor):
            return torch.atan(torch.exp(-half)) * (2 / math.pi)
        return math.atan2(1.0, math.exp(min(half, 700.0))) * 2 / math.pi if half > -700 else 1.0


@dataclass(frozen=True)
class VP(_VariancePreserving):
    """alpha = exp(-(beta_max - beta_min) t^2 / 4 - beta_min t / 2) (Song et al. 2021, eq. 33).

    alpha^2 + sigma^2 = 1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def pair(self, t: Time) -> tuple[Time, Time]:
        log_alpha = -(self.beta_max - self.beta_min) / 4 * t * t - self.beta_min / 2 * t
        m = _lib(t)
        return m.exp(log_alpha), m.sqrt(-m.expm1(2 * log_alpha))

    def rates(self, t: Time) -> tuple[Time, Time]:
        alpha, sigma = self.pair(t)
        half_beta = (self.beta_min + (self.beta_max - self.beta_min) * t) / 2
        if not isinstance(sigma, Tensor) and sigma == 0:
            return -half_beta, math.inf
        return -half_beta * alpha, half_beta * alpha * alpha / sigma

    def time(self, logsnr: Time) -> Time:
        slope, two_log = self.beta_max - self.beta_min, _softplus(-logsnr)  # -2 log alpha = softplus(-logsnr)
        root = _lib(two_log).sqrt(self.beta_min**2 + 2 * slope * two_log)
        return 2 * two_log / (self.beta_min + root)


@dataclass(frozen=True)
class VE(Schedule):
    """alpha = 1, sigma = sigma_max t^power: Karras et al. 2022 walk power 1; with power 7 a uniform grid is theirs."""

    sigma_max: float = 80.0
    power: float = 7.0

    def pair(self, t: Time) -> tuple[Time, Time]:
        one: Any = torch.ones_like(t) if isinstance(t, Tensor) else 1.0
        return one, self.sigma_max * t**self.power

    def norm(self, alpha: Time, sigma: Time) -> Time:
        return alpha + 0 * sigma

    def norm_rate(self, alpha: Time, sigma: Time, da: Time, ds: Time) -> Time:
        return da

    def rates(self, t: Time) -> tuple[Time, Time]:
        return 0 * t, self.sigma_max * self.power * t ** (self.power - 1)

    def time(self, logsnr: Time) -> Time:
        return _lib(logsnr).exp((-logsnr / 2 - math.log(self.sigma_max)) / self.power)


@dataclass(frozen=True)
class Discrete(_VariancePreserving):
    """A table of betas: alpha_i^2 = prod_{j <= i} (1 - beta_j) at t = (i + 1) / T, and (1, 0) at t = 0.

    Index i of T is at t = (i + 1)/T, so t T - 1 is the index a discrete network was trained with: 0 to T - 1, never T.
    Between the points alpha^2 is linear in t (finite also where the last alpha is 0).   Ho et al. 2020, eq. 4.

    Args:
        betas: T numbers in (0, 1]; only the last may be 1 (zero terminal SNR).
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        betas = tuple(float(b) for b in self.betas)
        object.__setattr__(self, "betas", betas)
        bad = [b for b in betas[:-1] if not 0 < b < 1] + [b for b in betas[-1:] if not 0 < b <= 1]
        if not betas or bad:
            raise ValueError(f"betas must be numbers in (0, 1), got {bad[0] if bad else 'none'}")

    def __repr__(self) -> str:
        return f"Discrete({len(self.betas)} betas, {self.betas[0]:.2e} to {self.betas[-1]:.2e})"

    @property
    def steps(self) -> int:
        """T, how many betas there are."""
        return len(self.betas)

    @classmethod
    def ddpm(cls, steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> Discrete:
        """Betas uniform between `low` and `high` (Ho et al. 2020, section 4)."""
        return cls(tuple(torch.linspace(low, high, steps, dtype=torch.float64).tolist()))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, low: float = 0.00085, high: float = 0.012) -> Discrete:
        """Square roots of the betas uniform: latent diffusion and Stable Diffusion (Rombach et al. 2022, app. B)."""
        return cls(tuple((torch.linspace(low**0.5, high**0.5, steps, dtype=torch.float64) ** 2).tolist()))

    @classmethod
    def cosine(cls, steps: int = 1000, offset: float = 0.008, clip: float = 0.999) -> Discrete:
        """beta_i = min(1 - abar(i + 1)/abar(i), clip), abar(i) = cos^2 (Nichol & Dhariwal 2021, eq. 17)."""

        def bar(i: int) -> float:
            return math.cos((i / steps + offset) / (1 + offset) * math.pi / 2) ** 2

        return cls(tuple(min(1 - bar(i + 1) / bar(i), clip) for i in range(steps)))

    def zero_terminal_snr(self) -> Discrete:
        """Betas whose sqrt(abar) is shifted to end at 0 and scaled to keep its start (Lin et al. 2024, algorithm 1)."""
        root = [math.sqrt(a) for a in self._table[0][1:]]
        first, last = root[0], root[-1]
        square = [((r - last) * first / (first - last)) ** 2 for r in root]
        return Discrete(tuple(1 - b / a for a, b in zip([1.0, *square], square, strict=False)))

    @cached_property
    def _table(self) -> tuple[list[float], list[float]]:
        """alpha^2 and sigma^2 at t = 0, 1/T, ..., 1; both kept, since one is 1 minus the other only on paper."""
        log, keep, lose = 0.0, [1.0], [0.0]
        for beta in self.betas:
            log += math.log1p(-beta) if beta < 1 else -math.inf
            keep.append(math.exp(log))
            lose.append(-math.expm1(log))
        return keep, lose

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        cache = self.__dict__.setdefault("_cache", {})
        key = (like.device, like.dtype)
        if key not in cache:
            cache[key] = tuple(torch.tensor(v, dtype=torch.float64).to(like) for v in self._table)
        return cache[key]

    def _index(self, t: Time) -> Any:
        """The interval [i/T, (i + 1)/T] that t lies in."""
        if isinstance(t, Tensor):
            return (t.detach() * self.steps).floor().clamp(0, self.steps - 1).long()
        return min(int(t * self.steps), self.steps - 1)

    def pair(self, t: Time) -> tuple[Time, Time]:
        keep, lose = self._tensors(t) if isinstance(t, Tensor) else self._table
        i = self._index(t)
        w, m = t * self.steps - i, _lib(t)
        return m.sqrt(keep[i] + w * (keep[i + 1] - keep[i])), m.sqrt(lose[i] + w * (lose[i + 1] - lose[i]))

    def rates(self, t: Time) -> tuple[Time, Time]:
        (keep, lose), (alpha, sigma) = self._tensors(t) if isinstance(t, Tensor) else self._table, self.pair(t)
        i = self._index(t)
        da, ds = (keep[i + 1] - keep[i]) * self.steps / 2, (lose[i + 1] - lose[i]) * self.steps / 2
        if isinstance(t, Tensor):
            return da / alpha, ds / sigma
        return da / alpha if alpha else -math.inf, ds / sigma if sigma else math.inf

    def time(self, logsnr: Time) -> Time:
        # look up in whichever of alpha^2, sigma^2 is small, where it is known to full relative precision
        if isinstance(logsnr, Tensor):
            keep, lose = self._tensors(logsnr)
            by_lose = self._locate(lose, logsnr.neg().sigmoid())
            by_keep = self._locate(-keep, -logsnr.sigmoid())
            return torch.where(logsnr > 0, by_lose, by_keep)
        table, value = (
            (self._table[1], _sigmoid(-logsnr)) if logsnr > 0 else ([-v for v in self._table[0]], -_sigmoid(logsnr))
        )
        i = min(max(bisect.bisect_right(table, value) - 1, 0), self.steps - 1)
        return (i + (value - table[i]) / (table[i + 1] - table[i])) / self.steps

    def _locate(self, rising: Tensor, value: Tensor) -> Tensor:
        i = (torch.searchsorted(rising, value.detach().contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        return (i + (value - rising[i]) / (rising[i + 1] - rising[i])) / self.steps


@dataclass(frozen=True)
class Shifted(Schedule):
    """`base` with sigma/alpha multiplied by `factor`, rescaled to stay in its family: see `Schedule.shift`."""

    base: Schedule
    factor: float

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"shift must be a positive number, got {self.factor:g}")

    def pair(self, t: Time) -> tuple[Time, Time]:
        alpha, sigma = self.base.pair(t)
        q = self.base.norm(alpha, self.factor * sigma)
        return alpha / q, self.factor * sigma / q

    def norm(self, alpha: Time, sigma: Time) -> Time:
        return self.base.norm(alpha, sigma)

    def norm_rate(self, alpha: Time, sigma: Time, da: Time, ds: Time) -> Time:
        return self.base.norm_rate(alpha, sigma, da, ds)

    def rates(self, t: Time) -> tuple[Time, Time]:
        (alpha, sigma), (da, ds), s = self.base.pair(t), self.base.rates(t), self.factor
        q = self.norm(alpha, s * sigma)
        dq = self.norm_rate(alpha, s * sigma, da, s * ds)
        return (da - alpha * dq / q) / q, s * (ds - sigma * dq / q) / q

    def time(self, logsnr: Time) -> Time:
        return self.base.time(logsnr + 2 * math.log(self.factor))


def from_json(data: dict[str, Any]) -> Schedule:
    """Rebuild a schedule from `Schedule.to_json()`; an unknown type or field is an error."""
    fields: dict[str, Any] = {k: from_json(v) if isinstance(v, dict) else v for k, v in data.items() if k != "type"}
    kinds = {kind.__name__: kind for kind in (Linear, Cosine, VP, VE, Discrete, Shifted)}
    if data.get("type") not in kinds:
        raise ValueError(f"unknown schedule {data.get('type')!r}: one of {', '.join(kinds)}")
    kind = kinds[data["type"]]
    known = {f.name for f in dataclasses.fields(kind)}
    if set(fields) != known:
        raise ValueError(f"schedule {kind.__name__} takes {sorted(known)}, the file says {sorted(fields)}")
    return kind(**fields)
