"""What every denoiser can do, and denoisers made of denoisers: `denoiser(fn, parts=[...])`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from suffuse.parameterize import Prediction
from suffuse.schedules import Schedule

__all__ = ["Composed", "call", "denoiser", "fresh", "stateless"]


class Base:
    """What every denoiser made here can do."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: float | Tensor, *, to: float | Tensor | None = None) -> Prediction:
        raise NotImplementedError

    def on(self, schedule: Schedule, *, clip: bool = False) -> Composed:
        """The same beliefs on another schedule: exact, by matching logsnr and rescaling x.

        Args:
            schedule: the noise schedule to live on.
            clip: where `schedule` is noisier than this one ever is, answer as at t = 1. Off: that is an error.
        Raises:
            ValueError: `schedule` reaches a logsnr at t = 1 that this denoiser's schedule never has, and not `clip`.
        """
        here, there = self.schedule.logsnr(1.0), schedule.logsnr(1.0)
        short = there < here - 1e-6 * abs(here)
        if short and not clip:
            raise ValueError(
                f"{schedule} ends at logsnr {there:.3g}, noisier than {self.schedule} ever is ({here:.3g}): "
                "pass clip=True to answer there as at t=1"
            )
        return denoiser(
            _retimed,
            parts=[self],
            schedule=schedule,
            settings={"schedule": schedule},
            extra={"schedule": schedule, "rebuild": short},
            name="on",
        )


def _retimed(x: Tensor, t: Any, to: Any, part: Any, *, schedule: Schedule, rebuild: bool) -> Prediction:
    alpha, sigma = schedule(t, like=x)
    base = part.schedule

    def match(at: Any) -> Any:
        time = base.time(schedule.logsnr(at))
        return time.clamp(0, 1) if isinstance(time, Tensor) else min(max(time, 0.0), 1.0)

    time = match(t)
    a, s = base(time, like=x)
    scale = (a * a + s * s) ** 0.5 / (alpha * alpha + sigma * sigma) ** 0.5
    inner = call(part, x * scale, time, None if to is None else match(to))
    eps = None if rebuild else lambda: inner.eps
    return Prediction(x, alpha, sigma, x0=lambda: inner.x0, eps=eps, var=inner.var)


def picked(value: Any, index: Any) -> Any:
    """The rows of a value that is kept by row; what is the same for all rows stays."""
    if isinstance(value, dict):
        return {k: picked(v, index) for k, v in value.items()}
    if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[0] == 1:
        return value
    return value[index.to(value.device) if isinstance(index, Tensor) else index]


class Composed(Base):
    """A denoiser made of denoisers; prints as the tree it is. Made by `denoiser(fn, parts=[...])`."""

    def __init__(self, fn: Callable[..., Prediction], parts: Sequence[Any], **rest: Any) -> None:
        self.fn, self.parts, self._rest = fn, list(parts), rest
        self.schedule = rest["schedule"]
        self.codec = next((p.codec for p in parts if getattr(p, "codec", None) is not None), None)
        self.state = rest["state"]() if rest["state"] is not None else None

    def __call__(self, x: Tensor, t: float | Tensor, *, to: float | Tensor | None = None) -> Prediction:
        extra = dict(self._rest["extra"]) | self._rest["rows"]
        if self.state is not None:
            extra["state"] = self.state
        return self.fn(x, t, to, *self.parts, **extra)

    def rows(self, index: Any) -> Composed:
        """The denoiser of some rows of a batch, with everything in it that is kept by row."""
        rows = {k: picked(v, index) for k, v in self._rest["rows"].items()}
        parts = [p.rows(index) if hasattr(p, "rows") else p for p in self.parts]
        new = Composed(self.fn, parts, **(self._rest | {"rows": rows}))
        state: Any = self.state
        new.state = state.rows(index) if hasattr(state, "rows") else state
        return new

    def fresh(self) -> Composed:
        """The same denoiser with its per-run state made anew; every run begins with this."""
        return Composed(self.fn, [fresh(p) for p in self.parts], **self._rest)

    def __repr__(self) -> str:
        inside = [repr(p) for p in self.parts] + [f"{k}={v!r}" for k, v in self._rest["settings"].items()]
        text = f"{self._rest['name']}({', '.join(inside)})"
        if len(text) <= 100:
            return text
        lines = ",\n".join(inside).replace("\n", "\n    ")
        return f"{self._rest['name']}(\n    {lines})"


def denoiser(
    fn: Callable[..., Prediction],
    parts: Sequence[Any],
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    rows: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    state: Callable[[], Any] | None = None,
    schedule: Schedule | None = None,
) -> Composed:
    """A denoiser from denoisers.

    Args:
        fn: `fn(x, t, to, *parts, **rows, **extra) -> Prediction`; also given `state=` when there is one.
        parts: the denoisers it asks; they share one schedule.
        name, settings: what is printed: the technique and its numbers.
        rows: values kept by row of the batch (a measurement, a weight per sample), indexed by `.rows(index)`.
        extra: anything else `fn` takes by name.
        state: makes the per-run state (momentum, caches), anew for every run.
        schedule: the schedule it lives on, when it is not that of its parts.
    Raises:
        ValueError: the parts live on different schedules; there are none.
    """
    if not parts:
        raise ValueError("a denoiser needs at least one part")
    schedules = [p.schedule for p in parts]
    if any(s != schedules[0] for s in schedules):
        raise ValueError(
            f"the parts live on different schedules, {', '.join(map(str, schedules))}: "
            "bring them together with .on(schedule)"
        )
    return Composed(
        fn,
        parts,
        name=name or getattr(fn, "__name__", "denoiser"),
        settings=dict(settings or {}),
        rows=dict(rows or {}),
        extra=dict(extra or {}),
        state=state,
        schedule=schedule or schedules[0],
    )


def fresh(part: Any) -> Any:
    """The denoiser with new per-run state, or itself when it holds none."""
    return part.fresh() if hasattr(part, "fresh") else part


def stateless(part: Any, why: str) -> Any:
    """A denoiser without per-run state, in any of its parts; `why` says what cannot keep it.

    Raises:
        ValueError: it holds state.
    """
    if isinstance(part, Composed):
        if part.state is not None:
            raise ValueError(f"{part._rest['name']}(...) keeps something from one evaluation to the next: {why}")
        for inner in part.parts:
            stateless(inner, why)
    return part


def call(part: Any, x: Tensor, t: Any, to: Any = None) -> Prediction:
    """Ask any denoiser, also a hand-written one that takes (x, t) only."""
    return part(x, t, to=to) if isinstance(part, Base) or _takes_to(part) else part(x, t)


def _takes_to(part: Any) -> bool:
    fn = part.forward if isinstance(part, nn.Module) else part
    try:
        return "to" in inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return False
