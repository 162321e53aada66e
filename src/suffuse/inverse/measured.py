"""What every method shares: the measurement, checked; and E[x0 | x_t] with its derivative.

Cov[x0 | x_t] = (sigma^2/alpha) d E[x0 | x_t] / d x_t,    so a vector-Jacobian product multiplies by the covariance.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import call
from suffuse.operators import Affine, GaussianNoise, LinearOperator, Operator, PoissonNoise
from suffuse.schedules import Schedule

__all__ = [
    "Stride",
    "Tweedie",
    "against",
    "checked",
    "checked_noise",
    "checked_sigma",
    "gain",
    "near",
    "residual",
    "tweedie",
]

_LOWEST = 1e-3  # alpha/sigma below which E[x0 | x_t] hardly depends on x_t, and its derivative is lost in rounding


def checked_sigma(method: str, sigma: Any, *, divides: bool = False) -> float:
    """The standard deviation of the measurement noise, a number or a `GaussianNoise`.

    Raises:
        ValueError: it is negative or not finite; or 0 for a method that divides by it.
        TypeError: the noise is not Gaussian of one sigma.
    """
    if isinstance(sigma, GaussianNoise):
        sigma = sigma.sigma
    if not isinstance(sigma, int | float):
        raise TypeError(
            f"{method} takes Gaussian noise of one standard deviation, got {sigma!r}: mmps, tds and dps take others"
        )
    sigma = float(sigma)
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma, the measurement's noise, must be a number of at least 0, got {sigma:g}")
    if divides and sigma == 0:
        raise ValueError(f"{method} divides by sigma, got 0: give the noise a size, or take ddnm, ddrm or pigdm")
    return sigma


def checked_noise(method: str, sigma: Any) -> GaussianNoise | PoissonNoise:
    """The noise of a measurement for a method that divides by its variance: a model of it, or a standard deviation.

    Raises:
        ValueError: the standard deviation is not positive. TypeError: neither.
    """
    return sigma if isinstance(sigma, PoissonNoise) else GaussianNoise(checked_sigma(method, sigma, divides=True))


def checked(method: str, A: Operator, y: Tensor, *, linear: bool = True, gradient: bool = False) -> tuple[Any, Tensor]:
    """The operator and the measurement as a method can use them; an affine operator becomes its linear part.

    Raises:
        TypeError: A is no operator; it is not linear, or has no gradient, and the method needs that; y is not floating.
        ValueError: y is no batch, or has values that are not finite.
    """
    if not isinstance(A, Operator):
        raise TypeError(f"A must be an operator, such as those of sf.operators, got {type(A).__name__}")
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(f"y must be a floating-point tensor, got {getattr(y, 'dtype', type(y).__name__)}")
    if y.ndim < 2:
        raise ValueError(f"y must be a batch of measurements, (1 or B, ...), got shape {tuple(y.shape)}")
    wrong = int((~y.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"y has {wrong} of {y.numel()} values that are not finite: put 0 there, and hide them with a Mask"
        )
    if isinstance(A, Affine) and linear:
        A, y = A.linear, y - A.offset
    if linear and not isinstance(A, LinearOperator):
        raise TypeError(f"{method} needs a linear operator, {A!r} is not: dps, flowchef, daps and tds take others")
    if gradient and "gradient" in A.lacks:
        raise TypeError(f"{method} needs the operator's gradient, {A!r} has none: guidance.steer needs none")
    return A, y


def residual(A: Operator, x0: Tensor, y: Tensor) -> Tensor:
    """y - A(x0), (B, ...).

    Raises:
        ValueError: the measurement's shape or rows do not fit what A makes of the data.
    """
    made = A(x0)
    if made.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"y has rows of shape {tuple(y.shape[1:])}, but {A!r} makes {tuple(made.shape[1:])} "
            f"of data {tuple(x0.shape[1:])}"
        )
    if len(y) not in (1, len(made)):
        raise ValueError(f"y was measured for {len(y)} rows, the batch has {len(made)}")
    return y.to(made) - made


def near(schedule: Schedule, t: Any) -> Any:
    """t, or where alpha/sigma there is below 1/1000 the time at which it is that: there E[x0 | x_t] has a slope."""
    end = schedule.time(2 * math.log(_LOWEST))
    return t.clamp(max=end) if isinstance(t, Tensor) else min(t, end)


def against(sigma: float, variance: Any) -> Any:
    """sigma^2/variance for `ridge`; at variance 0 so large that y says nothing, unless it has no noise."""
    return sigma**2 / (variance.clamp(min=1e-20) if isinstance(variance, Tensor) else max(variance, 1e-20))


class Tweedie:
    """E[x0 | x_t] and its derivative.

    Attributes:
        x0: (B, ...). alpha, sigma: the level it was asked at.
        vjps: how many vector-Jacobian products were taken of it.
    """

    def __init__(self, x: Tensor, x0: Tensor, alpha: Any, sigma: Any) -> None:
        self._x, self._x0, self.alpha, self.sigma = x, x0, alpha, sigma
        self._through = torch.is_grad_enabled() and x.grad_fn is not None
        self.x0 = x0 if self._through else x0.detach()

    def pull(self, v: Tensor) -> Tensor:
        """v . d x0/d x_t."""
        return torch.autograd.grad(self._x0, self._x, v, retain_graph=True, create_graph=self._through)[0]

    def covariance(self, v: Tensor) -> Tensor:
        """Cov[x0 | x_t] v = (sigma^2/alpha) v . d x0/d x_t."""
        return self.sigma**2 / self.alpha * self.pull(v)

    def variance(self, spread: float) -> Any:
        """r^2 = s^2 sigma^2/(s^2 alpha^2 + sigma^2): Cov[x0 | x_t] = r^2 I for data of standard deviation s."""
        return (spread * self.sigma) ** 2 / ((spread * self.alpha) ** 2 + self.sigma**2)


def tweedie(model: Any, x: Tensor, t: Any, to: Any = None) -> Tweedie:
    """Ask a denoiser so that its answer can be differentiated; the gradient is switched on here and only here."""
    time = near(model.schedule, t)
    (a, s), (alpha, sigma) = model.schedule(t, like=x), model.schedule(time, like=x)
    scale = ((alpha * alpha + sigma * sigma) / (a * a + s * s)) ** 0.5
    outer = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x * scale if outer else (x.detach() * scale).requires_grad_()
        x0 = call(model, at, time, to).x0
    return Tweedie(at, x0, alpha, sigma)


class Stride:
    """Where the step to `to` began: per-run state of methods that move the state a step goes to.

    A stage asks within its step and a corrector at the end of it, where `gain` from there would be 0: what they are
    told counts in the same step, and is pushed as at its beginning.
    """

    def __init__(self) -> None:
        self._begin: Any = None
        self._to: Any = None

    def begin(self, t: Any, to: Any) -> Any:
        """The time at the beginning of the step to `to`, within which t is asked; t itself where nothing came before.

        A corrector's is the only question of its step: that begins where the last one went to.
        """
        if self._to is None or not _equal(to, self._to):
            self._begin = self._to if _equal(t, to) and self._to is not None else t
            self._to = to
        return self._begin


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def gain(schedule: Schedule, t: Any, to: Any, eta: float, like: Tensor, method: str) -> Any:
    """d x_b/d x0 of the step of `ddim(eta)` from t to `to`: alpha_b - sqrt(sigma_b^2 - d^2) alpha_a/sigma_a.

    Raises:
        ValueError: `to` is not known.
    """
    if to is None:
        raise ValueError(f"{method} moves the state that a step goes to: run it with a sampler, or say to=")
    if _equal(t, to):
        raise ValueError(f"{method} moves the state that a step goes to, and from t={t} to={to} there is no step")
    (alpha, sigma), (alpha_b, sigma_b) = schedule(t, like=like), schedule(to, like=like)
    keep = (1 - eta**2 * (1 - (alpha * sigma_b / (alpha_b * sigma)) ** 2)) ** 0.5
    return alpha_b - sigma_b * keep * alpha / sigma
