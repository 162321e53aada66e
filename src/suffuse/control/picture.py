"""What a control is told: a picture, how strongly, and at which times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.parameterize import Number

__all__ = ["Hint", "Picture", "weight"]

Told = dict[str, Tensor]


@dataclass(frozen=True)
class Hint:
    """A picture for a control, `model.given(edges=Hint(picture, 0.7, between=(0.3, 1.0)))`.

    Args:
        picture: (rows, channels, *spatial) in [-1, 1], or one for all rows; NaN in a row tells it nothing.
        strength: what the control's features are multiplied with, a number or one a row; 1 as trained, 0 is off.
        between: times where it acts, inclusive; t=0 is data, t=1 is noise.
    """

    picture: Tensor
    strength: float | Tensor = 1.0
    between: tuple[float, float] = (0.0, 1.0)


class Picture:
    """The condition of a control: a picture or a `Hint`; an image of NaN means "told nothing".

    Args:
        channels: of the picture. dims: its spatial dimensions. factor: its points for one of x, along each axis.
        clock: from times to what the network is told of them.
    """

    def __init__(self, channels: int, dims: int, factor: int, clock: Callable[[float], float]) -> None:
        self.channels, self.dims, self.factor, self.clock = channels, dims, factor, clock

    def check(self, name: str, value: Any) -> Told:
        """Take a picture (rows, channels, *spatial) or without rows, or a `Hint`.

        Raises:
            TypeError: no numbers.
            ValueError: another shape, no rows, numbers beyond [-1, 1], a strength that is not finite or has other rows,
                a wrong interval.
        """
        hint = self.read(name, value)
        return {"picture": hint.picture} | self.acting(name, hint, len(hint.picture))

    def read(self, name: str, value: Any) -> Hint:
        """The hint, with its picture checked and in floats."""
        hint = value if isinstance(value, Hint) else Hint(value)
        wants = f"(rows, {self.channels}, {', '.join('DHW'[-self.dims :])})"
        try:
            picture = torch.as_tensor(hint.picture)
        except (TypeError, ValueError, RuntimeError):
            got = type(hint.picture).__name__
            raise TypeError(f"{name} must be a picture {wants} or a Hint of one, got a {got}") from None
        picture = picture[None] if picture.ndim == self.dims + 1 else picture
        if picture.ndim != self.dims + 2 or picture.shape[1] != self.channels:
            raise ValueError(f"{name} must have shape {wants}, got {tuple(picture.shape)}")
        if not picture.numel():
            raise ValueError(f"{name} is empty: {tuple(picture.shape)}")
        picture = picture if picture.is_floating_point() else picture.float()
        low, high = picture.nan_to_num(0.0).aminmax()
        if max(-low, high) > 1.01:
            raise ValueError(f"{name} must lie in [-1, 1], got {low:g} to {high:g}")
        return replace(hint, picture=picture)

    def acting(self, name: str, hint: Hint, rows: int) -> Told:
        """Strength and interval as tensors of one row for each of the picture's."""
        strength = torch.as_tensor(hint.strength, dtype=torch.float32)
        if strength.shape not in ((), (1,), (rows,)) or not bool(strength.isfinite().all()):
            raise ValueError(
                f"the strength of {name} must be a finite number or one for each of {rows} rows, got {hint.strength}"
            )
        start, end = hint.between
        if not 0 <= start <= end <= 1:
            raise ValueError(f"between must be two times 0 <= low <= high <= 1, got {hint.between} for {name}")
        low = -torch.inf if start <= 0 else float(self.clock(start))
        high = torch.inf if end >= 1 else float(self.clock(end))
        if self.clock(0.75) < self.clock(0.25):  # a network whose clock runs from noise to data
            low, high = (v if abs(v) < torch.inf else -v for v in (high, low))
        return {
            "strength": strength.expand(rows).clone(),
            "low": torch.full((rows,), low),
            "high": torch.full((rows,), high),
        }

    def null(self, name: str, x: Tensor) -> Told:
        """NaN for every row of x, at x's size."""
        size = (len(x), self.channels, *(self.factor * n for n in x.shape[2:]))
        blank = torch.full(size, torch.nan, device=x.device, dtype=x.dtype)
        return {"picture": blank} | {k: v.to(x.device) for k, v in self.acting(name, Hint(blank), len(x)).items()}

    def fits(self, name: str, picture: Tensor, x: Tensor) -> None:
        """Refuse a picture of another size than x's.

        Raises:
            ValueError: says both sizes.
        """
        want = tuple(self.factor * n for n in x.shape[2:])
        if tuple(picture.shape[2:]) != want:
            each = f", {self.factor} points for each of x's {tuple(x.shape[2:])}" if self.factor > 1 else ", x's own"
            raise ValueError(f"{name} must have the size {want}{each}; got {tuple(picture.shape[2:])}")


def clock(model: Denoiser) -> Callable[[float], Number]:
    """What the model's network is told of a time."""
    tells = model.parameterization.tells
    return lambda t: t if tells is None else tells(model.schedule, t)


def weight(told: Told, t: Tensor) -> Tensor:
    """(B,): the strength where a row was told something and t is in its interval, else 0."""
    seen = ~told["picture"].flatten(1).isnan().any(1)
    acts = seen & (t >= told["low"].to(t)) & (t <= told["high"].to(t))
    return torch.where(acts, told["strength"].to(t), 0.0)
