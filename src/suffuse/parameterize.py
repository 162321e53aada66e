"""What a network's output means, and the pair (x0, eps) that it predicts.

output = a x0 + b eps        with x = alpha x0 + sigma eps:

    x0  = (b x - sigma output) / (alpha b - sigma a)
    eps = (alpha output - a x) / (alpha b - sigma a)

One row (a, b) is both how to read the output and what to train it to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from suffuse.schedules import Schedule

__all__ = ["Parameterization", "Prediction", "edm", "eps", "v", "velocity", "x0"]

Number = Any  # float, or a Tensor that broadcasts against the data


def _zero(value: Number) -> bool:
    """Whether a coefficient is exactly 0, asked only where the answer is at hand (never of an accelerator)."""
    if isinstance(value, Tensor):
        return value.device.type == "cpu" and not torch.compiler.is_compiling() and bool((value == 0).any())
    return value == 0


class Prediction:
    """What a denoiser believes: (x0, eps) with x = alpha x0 + sigma eps, each computed when first asked for.

    Closed under + - and multiplication by numbers, so guidance is arithmetic. `var` (optional) is the variance of
    x0 given x, of x0's shape. `fraction` (of a network with learned variance, like x) is where the log variance of a
    step lies between the smallest, 0, and the largest, 1: see `sf.samplers.ddpm_learned`.

    `affine`, where it is known, is (output, {"x0": (p, q), "eps": (p, q)}) with x0 = p x + q output and so on: a
    sampler folds it into its own sums instead of computing x0 first.

    Args:
        x: the noisy data (B, ...).
        alpha, sigma: the noise level, floats or tensors that broadcast against x.
        x0, eps: what is known: at least one, a tensor or a function that makes it. The other is solved for.
    Raises:
        ValueError: neither is given; or, when asked for, x0 where alpha = 0 or eps where sigma = 0 and the other
            one alone is known.
    """

    __slots__ = ("_eps", "_negative", "_x", "_x0", "affine", "alpha", "fraction", "sigma", "var")

    def __init__(
        self,
        x: Tensor | Callable[[], Tensor],
        alpha: Number,
        sigma: Number,
        *,
        x0: Tensor | Callable[[], Tensor] | None = None,
        eps: Tensor | Callable[[], Tensor] | None = None,
        var: Tensor | None = None,
        fraction: Tensor | None = None,
    ) -> None:
        if x0 is None and eps is None:
            raise ValueError("a Prediction needs x0 or eps")
        self.alpha, self.sigma, self.var, self.fraction = alpha, sigma, var, fraction
        self.affine: tuple[Tensor, dict[str, tuple[float, float]]] | None = None
        self._x, self._x0, self._eps = x, x0, eps
        self._negative: Prediction | Callable[[], Prediction] | None = None

    @property
    def x(self) -> Tensor:
        """The noisy data this is a prediction of."""
        if not isinstance(self._x, Tensor):
            self._x = self._x()
        return self._x

    @property
    def x0(self) -> Tensor:
        """The expected clean data, like x."""
        if self._x0 is None:
            if _zero(self.alpha):
                raise ValueError("x0 cannot be solved from eps where alpha = 0 (pure noise): predict v or velocity")
            self._x0 = (self.x - self.sigma * self.eps) / self.alpha
        elif not isinstance(self._x0, Tensor):
            self._x0 = self._x0()
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The expected noise, like x."""
        if self._eps is None:
            if _zero(self.sigma):
                raise ValueError("eps cannot be solved from x0 where sigma = 0 (clean data): predict v or velocity")
            self._eps = (self.x - self.alpha * self.x0) / self.sigma
        elif not isinstance(self._eps, Tensor):
            self._eps = self._eps()
        return self._eps

    @property
    def negative(self) -> Prediction | None:
        """What the negative believes of the same x, where this is guided away from one; only `sf.guide` says so."""
        if self._negative is not None and not isinstance(self._negative, Prediction):
            self._negative = self._negative()
        return self._negative

    def against(self, negative: Prediction | Callable[[], Prediction]) -> Prediction:
        """The same prediction with its negative, a Prediction or a function that asks for it."""
        new = Prediction(
            self._x, self.alpha, self.sigma, x0=self._x0, eps=self._eps, var=self.var, fraction=self.fraction
        )
        new.affine, new._negative = self.affine, negative
        return new

    def _combine(self, other: Prediction, sign: float) -> Prediction:
        if not isinstance(other, Prediction):
            return NotImplemented
        both_x0 = self._x0 is not None and other._x0 is not None
        both_eps = self._eps is not None and other._eps is not None
        known_x0, known_eps = both_x0 or not both_eps, both_eps or not both_x0
        both = self.fraction is not None and other.fraction is not None
        return Prediction(
            lambda: self.x + sign * other.x,
            self.alpha,
            self.sigma,
            x0=(lambda: self.x0 + sign * other.x0) if known_x0 else None,
            eps=(lambda: self.eps + sign * other.eps) if known_eps else None,
            fraction=self.fraction + sign * other.fraction if both else None,  # type: ignore[operator]
        )

    def __add__(self, other: Prediction) -> Prediction:
        return self._combine(other, 1.0)

    def __sub__(self, other: Prediction) -> Prediction:
        return self._combine(other, -1.0)

    def __mul__(self, scale: Number) -> Prediction:
        return Prediction(
            lambda: scale * self.x,
            self.alpha,
            self.sigma,
            x0=(lambda: scale * self.x0) if self._x0 is not None else None,
            eps=(lambda: scale * self.eps) if self._eps is not None else None,
            fraction=None if self.fraction is None else scale * self.fraction,
        )

    __rmul__ = __mul__

    def rows(self, index: Any) -> Prediction:
        """The same prediction for some rows of the batch, in the order of `index`."""

        def take(value: Any) -> Any:
            batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.x.shape[0]
            return value[index] if batched else value

        taken = Prediction(
            self.x[index],
            take(self.alpha),
            take(self.sigma),
            x0=(lambda: self.x0[index]) if self._x0 is not None else None,
            eps=(lambda: self.eps[index]) if self._eps is not None else None,
            var=take(self.var),
            fraction=take(self.fraction),
        )
        return taken if self._negative is None else taken.against(lambda: cast(Prediction, self.negative).rows(index))


@dataclass(frozen=True)
class Parameterization:
    """One row: a network's output is a x0 + b eps, its input is `scale` x, and it is told `tells(schedule, t)`.

    Args:
        name: how it is called in files and errors.
        row: (schedule, t, alpha, sigma) -> (a, b).
        scale: (alpha, sigma) -> what x is multiplied with before the network; None is 1.
        tells: (schedule, t) -> what the network is told about t; None is t itself.
    """

    name: str
    row: Callable[[Schedule, Any, Number, Number], tuple[Number, Number]]
    scale: Callable[[Number, Number], Number] | None = None
    tells: Callable[[Schedule, Any], Any] | None = None

    def read(self, output: Tensor, x: Tensor, alpha: Number, sigma: Number, row: tuple[Number, Number]) -> Prediction:
        """The prediction of a network that answered `output` at x.

        Raises:
            ValueError: where (a, b) says nothing that x does not say already: eps at alpha = 0, x0 at sigma = 0.
        """
        a, b = row
        det = alpha * b - sigma * a
        if not isinstance(det, Tensor) and not math.isfinite(det):
            raise ValueError(f"{self.name} is infinite at alpha={_show(alpha)}, sigma={_show(sigma)} on this schedule")
        if _zero(det):
            raise ValueError(
                f"a network that predicts {self.name} says nothing at alpha={_show(alpha)}, sigma={_show(sigma)}: "
                "there its output and x fix only one of x0 and eps; predict v or velocity, or start the grid elsewhere"
            )
        on_x0, on_eps = (b / det, -sigma / det), (-a / det, alpha / det)
        made = Prediction(
            x,
            alpha,
            sigma,
            x0=lambda: _affine(x, output, *on_x0),
            eps=lambda: _affine(x, output, *on_eps),
        )
        if not isinstance(det, Tensor) and not isinstance(b, Tensor):
            made.affine = (output, {"x0": on_x0, "eps": on_eps})
        return made

    def write(self, x0: Tensor, eps: Tensor, row: tuple[Number, Number]) -> Tensor:
        """What the network should answer: a x0 + b eps."""
        return row[0] * x0 + row[1] * eps


def _affine(x: Tensor, output: Tensor, p: Number, q: Number) -> Tensor:
    """p x + q output, without the half that is 0."""
    if isinstance(q, Tensor):
        return p * x + q * output
    if not isinstance(p, Tensor) and p == 0:
        return output if q == 1 else q * output
    return torch.add(p * x, output, alpha=q)


def _show(value: Number) -> str:
    return f"{value.flatten()[0].item():.3g}" if isinstance(value, Tensor) else f"{value:.3g}"


def _rates(schedule: Schedule, t: Any, alpha: Number, sigma: Number) -> tuple[Number, Number]:
    da, ds = schedule.rates(t)
    if isinstance(da, Tensor) and isinstance(alpha, Tensor):
        shape = da.shape + (1,) * (alpha.ndim - da.ndim)
        return da.to(alpha.dtype).reshape(shape), ds.to(alpha.dtype).reshape(shape)
    return da, ds


eps = Parameterization("eps", lambda schedule, t, alpha, sigma: (0.0, 1.0))
x0 = Parameterization("x0", lambda schedule, t, alpha, sigma: (1.0, 0.0))
v = Parameterization("v", lambda schedule, t, alpha, sigma: (-sigma, alpha))
velocity = Parameterization("velocity", _rates)


def _clamp(logsnr: Any) -> Any:
    """Within +-20: a network cannot be told infinity."""
    return logsnr.clamp(-20, 20) if isinstance(logsnr, Tensor) else min(max(logsnr, -20.0), 20.0)


def edm(data_std: float = 0.5) -> Parameterization:
    """EDM's F on any schedule: unit variance in and out for data of standard deviation `data_std`.

    q = sqrt(alpha^2 s^2 + sigma^2),  input x / q,  output F = (sigma / (q s)) x0 - (alpha s / q) eps,
    told log(sigma/alpha)/4.
    Karras et al. 2022, table 1 (theirs is alpha = 1).
    """
    s = float(data_std)
    if not (s > 0 and math.isfinite(s)):
        raise ValueError(f"data_std must be a positive number, got {data_std}")

    def q(alpha: Number, sigma: Number) -> Number:
        return (alpha * alpha * s * s + sigma * sigma) ** 0.5

    return Parameterization(
        f"edm({s!r})",
        lambda schedule, t, alpha, sigma: (sigma / (q(alpha, sigma) * s), -alpha * s / q(alpha, sigma)),
        scale=lambda alpha, sigma: 1 / q(alpha, sigma),
        tells=lambda schedule, t: _clamp(schedule.logsnr(t)) / -8,
    )


def named(predicts: str | Parameterization) -> Parameterization:
    """The parameterization of this name: "eps", "x0", "v", "velocity", "edm" or "edm(0.5)"."""
    if isinstance(predicts, Parameterization):
        return predicts
    known = {p.name: p for p in (eps, x0, v, velocity)} | {"edm": edm()}
    if predicts in known:
        return known[predicts]
    if predicts.startswith("edm(") and predicts.endswith(")"):
        return edm(float(predicts[4:-1]))
    raise ValueError(f"unknown parameterization {predicts!r}: one of {', '.join(known)}")
