"""A network read as a denoiser, and what it is told."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from suffuse.codec import Codec
from suffuse.denoise.composed import Base, Composed, call, picked
from suffuse.parameterize import Number, Parameterization, Prediction, named
from suffuse.schedules import Schedule

__all__ = ["Condition", "Denoiser", "Told", "check_range", "evaluating", "networks", "together"]


Told = Tensor | dict[str, Tensor]


def each(fn: Callable[..., Tensor], *values: Any) -> Any:
    """fn of tensors; or, where a condition is several, of each by name."""
    if isinstance(values[0], dict):
        return {k: fn(*(v[k] for v in values)) for k in values[0]}
    return fn(*values)


@runtime_checkable
class Condition(Protocol):
    """What a network may be told under one name: how a user's value is checked, and what "told nothing" is.

    A value is a tensor, or several by name where one thing is told in several ways (a prompt's tokens and its summary).
    """

    def check(self, name: str, value: Any) -> Told:
        """The value as tensors whose first size is rows (1 or B); raises naming the value that does not fit."""
        ...

    def null(self, name: str, x: Tensor) -> Told:
        """The value that means "told nothing" for every row of x; raises if the network was not made for that."""
        ...


class _Passed:
    """A condition of a network that declares names only: passed on as it is, left out when not given."""

    def check(self, name: str, value: Any) -> Tensor:
        value = torch.as_tensor(value)
        return value[None] if value.ndim == 0 else value


def check_range(x: Tensor, what: str) -> None:
    """Refuse data that is not finite or plainly not scaled: integers, or beyond +-30 (images lie in [-1, 1]).

    Raises:
        TypeError, ValueError: say what was seen. Not looked for on an accelerator.
    """
    if not x.is_floating_point():
        raise TypeError(f"{what} is {x.dtype}: scale it to floating point in about [-1, 1], as in x / 127.5 - 1")
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and x.numel():
        low, high = x.min().item(), x.max().item()
        if not math.isfinite(low + high):
            bad = int((~x.isfinite().reshape(len(x), -1).all(1)).sum())
            raise ValueError(f"{what} must be finite, {bad} of {len(x)} {'is' if bad == 1 else 'are'} not")
        if max(-low, high) > 30:
            raise ValueError(f"{what} runs from {low:g} to {high:g}: scale it to about [-1, 1], as in x / 127.5 - 1")


class Denoiser(Base):
    """A network read as a denoiser.

    Args:
        net: called as `net(x, t, **conditions)` with x (B, ...) in the network's own dtype and t (B,).
        schedule: the noise schedule it was trained on.
        predicts: what its output means: "eps", "x0", "v", "velocity", "edm", or a `Parameterization`.
        condition: name -> `Condition`, or just names; by default what `net.conditions` declares.
        variance: "range" if the network answers 2 C channels, the second half v in [-1, 1] saying where the log
            variance of a step lies between its smallest and largest value (Nichol & Dhariwal 2021, eq. 15);
            `sf.samplers.ddpm_learned` uses it, other samplers do without.
        shape: of one item at the size it was trained for, (C, H, W), where that is known.
        codec: from data to the latents it denoises; None where it denoises the data itself.
    Raises:
        TypeError: `schedule` is not a Schedule.
        ValueError: an unknown parameterization or kind of variance.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        schedule: Schedule,
        predicts: str | Parameterization = "velocity",
        condition: Mapping[str, Condition] | Sequence[str] | None = None,
        *,
        variance: str | None = None,
        shape: tuple[int, ...] | None = None,
        codec: Codec | None = None,
    ) -> None:
        if variance not in (None, "range"):
            raise ValueError(f"variance must be None or 'range', got {variance!r}")
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule such as sf.schedules.Linear(), got {schedule!r}")
        declared = getattr(net, "conditions", {}) if condition is None else condition
        if not isinstance(declared, Mapping):
            declared = {name: _Passed() for name in declared}
        self.net, self.schedule, self.parameterization, self.variance = net, schedule, named(predicts), variance
        self.conditions: dict[str, Any] = dict(declared)
        self.bound: dict[str, Told] = {}
        self.shape, self.codec = shape, codec

    def __repr__(self) -> str:
        told = "".join(f", {name}" for name in self.bound)
        learned = "" if self.variance is None else f", variance {self.variance}"
        return f"{type(self.net).__name__}({self.schedule}, predicts {self.parameterization.name}{learned}{told})"

    def given(self, **conditions: Any) -> Denoiser:
        """This denoiser, told more.

        Args:
            conditions: values by name, for one or for every row of a batch; None takes a condition back.
        Raises:
            TypeError: a name the network does not take.
            ValueError: a value it cannot take.
        """
        new = copy.copy(self)
        new.bound = dict(self.bound)
        for name, value in conditions.items():
            if name not in self.conditions:
                takes = ", ".join(self.conditions) or "none"
                raise TypeError(f"unknown condition {name!r}: {type(self.net).__name__} takes {takes}")
            if value is None:
                new.bound.pop(name, None)
            else:
                new.bound[name] = self.conditions[name].check(name, value)
        return new

    def rows(self, index: Any) -> Denoiser:
        """The denoiser of some rows of a batch, with their conditions."""
        new = copy.copy(self)
        new.bound = {k: picked(v, index) for k, v in self.bound.items()}
        return new

    def forget(self, rows: Tensor, x: Tensor) -> Denoiser:
        """The denoiser with some rows told nothing.

        Args:
            rows: (B,) bool, true where every bound condition is replaced by its null.
            x: the batch (B, ...) it will be asked about.
        """
        new = copy.copy(self)
        new.bound = {}
        for name, value in self.bound.items():
            if isinstance(self.conditions[name], _Passed):
                raise ValueError(f"{name!r} has no null: give the Denoiser a condition with one, such as nets.Label")

            def where(told: Tensor, null: Tensor) -> Tensor:
                return torch.where(rows.reshape(-1, *[1] * (told.ndim - 1)), null.to(told.dtype), told)

            new.bound[name] = each(where, value, self.conditions[name].null(name, x))
        return new

    def told(self, x: Tensor, to: Any = None) -> dict[str, Any]:
        """Every condition of the network as tensors with x's rows, on x's device."""
        values: dict[str, Any] = {}
        for name, spec in self.conditions.items():
            if name == "to" and to is not None:
                value = _rows_of(to, x)
            elif name in self.bound:
                value = self.bound[name]
            elif isinstance(spec, _Passed):
                continue
            else:
                value = spec.null(name, x)
            values[name] = each(lambda v, name=name: _spread(v, name, x), value)
        return values

    def output(self, x: Tensor, t: Any, to: Any = None) -> tuple[Tensor, Number, Number, tuple[Number, Number]]:
        """The network's raw output with (alpha, sigma) and the row (a, b) it is read with; no learned variance."""
        out, alpha, sigma, row = self._output(x, t, self.told(x, to))
        return out if self.variance is None else out[:, : x.shape[1]], alpha, sigma, row

    def _output(self, x: Tensor, t: Any, told: dict[str, Any]) -> tuple[Tensor, Number, Number, tuple[Number, Number]]:
        p = self.parameterization
        alpha, sigma = self.schedule(t, like=x)
        time = _rows_of(t if p.tells is None else p.tells(self.schedule, t), x)
        dtype = _dtype(self.net, x)
        inside = x if p.scale is None else x * p.scale(alpha, sigma)
        if dtype != x.dtype:
            inside = inside.to(dtype)
            told = {
                k: each(lambda v: v.to(dtype) if v.is_floating_point() and v.ndim > 1 else v, told[k]) for k in told
            }
        clock = torch.float64 if dtype == torch.float64 else torch.float32
        out = self.net(inside, time if time.dtype == clock else time.to(clock), **told)
        if out.shape != (x.shape if self.variance is None else (len(x), 2 * x.shape[1], *x.shape[2:])):
            raise ValueError(self._misfit(out, x))
        return out if out.dtype == x.dtype else out.to(x.dtype), alpha, sigma, p.row(self.schedule, t, alpha, sigma)

    def _misfit(self, out: Tensor, x: Tensor) -> str:
        seen = f"the network answered shape {tuple(out.shape)} to x of shape {tuple(x.shape)}"
        if self.variance is not None:
            return f"{seen}: with variance={self.variance!r} it should answer twice the channels"
        if x.ndim > 1 and out.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            return f"{seen}: if the second half is a learned variance, say Denoiser(..., variance='range')"
        return seen

    def _read(self, out: Tensor, x: Tensor, alpha: Number, sigma: Number, row: tuple[Number, Number]) -> Prediction:
        if self.variance is None:
            return self.parameterization.read(out, x, alpha, sigma, row)
        out, v = out.chunk(2, 1)
        p = self.parameterization.read(out, x, alpha, sigma, row)
        p.fraction = (v + 1) / 2
        return p

    def __call__(self, x: Tensor, t: float | Tensor, *, to: float | Tensor | None = None) -> Prediction:
        """What the network believes at time t.

        Args:
            x: (B, ...) noisy data. t: time in [0, 1], a float or a tensor () or (B,).
            to: the time the sampler goes to, for networks with a condition of that name.
        """
        out, alpha, sigma, row = self._output(x, t, self.told(x, to))
        return self._read(out, x, alpha, sigma, row)


def _spread(value: Tensor, name: str, x: Tensor) -> Tensor:
    if value.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"{name} was given for {value.shape[0]} rows, the batch has {x.shape[0]}")
    return value.to(x.device, non_blocking=True).expand(x.shape[0], *value.shape[1:])


def _rows_of(t: Any, x: Tensor) -> Tensor:
    if isinstance(t, Tensor) and t.ndim > 0:
        return t.to(x.device)
    if isinstance(t, Tensor):
        return t.to(x.device).expand(x.shape[0])
    return torch.full(
        (x.shape[0],), t, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device
    )


def _dtype(net: Any, x: Tensor) -> torch.dtype:
    if isinstance(net, nn.Module):
        for p in net.parameters():
            if p.is_floating_point():
                return p.dtype
    return x.dtype


def together(parts: Sequence[Any], x: Tensor, t: Any, to: Any = None) -> list[Prediction]:
    """What several denoisers believe of the same x, in one batched forward when they are bindings of one network."""
    first = parts[0]
    if len(parts) == 1 or not all(_same_network(first, p) for p in parts[1:]):
        return [call(p, x, t, to) for p in parts]
    n, rows = len(parts), x.shape[0]
    told = [p.told(x, to) for p in parts]
    if any(a.keys() != told[0].keys() for a in told):
        return [call(p, x, t, to) for p in parts]
    for name, spec in first.conditions.items():
        lengths = {a[name].shape[1] for a in told if isinstance(a.get(name), Tensor) and a[name].ndim > 1}
        if len(lengths) > 1:  # sequences of several lengths: "told nothing" is what fills them up
            blank = spec.null(name, x)
            for a in told:
                more = blank[:, :1].to(a[name]).expand(rows, max(lengths) - a[name].shape[1], *blank.shape[2:])
                a[name] = torch.cat([a[name], more], 1)

    def many(value: Any) -> Any:
        return value.repeat(n, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value

    joined = {k: each(lambda *v: torch.cat(v), *(a[k] for a in told)) for k in told[0]}
    out, alpha, sigma, row = first._output(many(x), many(t), joined)
    every = first._read(out, many(x), alpha, sigma, row)
    return [every.rows(slice(i * rows, (i + 1) * rows)) for i in range(n)]


def _same_network(a: Any, b: Any) -> bool:
    return (
        isinstance(a, Denoiser)
        and isinstance(b, Denoiser)
        and a.net is b.net
        and a.schedule == b.schedule
        and a.parameterization == b.parameterization
        and a.variance == b.variance
    )


def networks(part: Any) -> list[nn.Module]:
    """Every `nn.Module` inside a denoiser, parts of parts included."""
    if isinstance(part, Composed):
        return [net for p in part.parts for net in networks(p)]
    net = part.net if isinstance(part, Denoiser) else part
    return [net] if isinstance(net, nn.Module) else []


@contextlib.contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """These modules in eval mode, each one's own mode restored afterwards."""
    training = [m for m in modules if m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
