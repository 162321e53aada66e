"""Models as papers publish them: a network whose time, input and output follow somebody else's conventions.

| form | called as | answers | lives on |
|---|---|---|---|
| "edm", "k-diffusion" | net(x, sigma) at x = x0 + sigma eps | x0 | VE(sigma_max) |
| "adm" | net(x, index) | eps, and with `variance` twice the channels | Discrete.ddpm() |
| "flow_matching" | net(x, s), s = 1 - t: 0 is noise, 1 is data | x0 - eps | Linear() |
| None | net(x, t) | `predicts` | `schedule` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from suffuse.denoise import Condition, Denoiser
from suffuse.hub.schedule import index
from suffuse.hub.tensors import tensors
from suffuse.parameterize import Parameterization, eps, named
from suffuse.schedules import VE, Discrete, Linear, Schedule
from suffuse.training.described import fill

__all__ = ["load"]

_DENOISED = Parameterization("x0", lambda schedule, t, a, s: (1.0, 0.0), tells=lambda schedule, t: schedule(t)[1])
_EPS = Parameterization("eps", eps.row, tells=index)
_TO_DATA = Parameterization("velocity to data", lambda schedule, t, a, s: (1.0, -1.0), tells=lambda schedule, t: 1 - t)
FORMS = ("edm", "k-diffusion", "adm", "flow_matching", None)


def load(
    net: Callable[..., Tensor],
    form: str | None = None,
    *,
    weights: str | Path | None = None,
    key: str | None = None,
    schedule: Schedule | None = None,
    predicts: str | Parameterization | None = None,
    condition: Mapping[str, Condition] | Sequence[str] | None = None,
    variance: str | None = None,
    sigma_max: float = 80.0,
    shape: tuple[int, ...] | None = None,
) -> Denoiser:
    """A network as a paper published it, as a denoiser.

    Args:
        net: a module or any callable, called as the table above says, with conditions by name.
        form: whose conventions it follows; None is ours, by `schedule` and `predicts`.
        weights: a file to fill the module with, read without running anything (`sf.hub.tensors`). key: where in it.
        schedule: "adm": another table, such as Discrete.cosine(). None: needed. Not for the others.
        predicts: None: needed; a network on a Discrete schedule is told the index. Not for the others.
        condition: name -> condition, or names that are passed on as they are; `sf.hub.load(..., condition=["y"])`.
        variance: "range" for a network that also answers the variance, as ADM's with learn_sigma do.
        sigma_max: "edm", "k-diffusion": the largest sigma it was trained on.
        shape: of one item.
    Raises:
        ModelFileError: the weights are not safe, not whole, or do not fit.
        ValueError: an unknown form; a schedule or parameterization that the form already says, or that is missing.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
    if form is not None and predicts is not None:
        raise ValueError(f"form={form!r} says what the network predicts: leave out predicts")
    if form not in ("adm", None) and schedule is not None:
        raise ValueError(f"form={form!r} says on which schedule it lives: leave out schedule, or use .on(schedule)")
    if form is None and (schedule is None or predicts is None):
        raise ValueError("say schedule= and predicts=, or form= for a published convention")
    if weights is not None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"weights= fills a torch module, got {type(net).__name__}")
        fill(net, tensors(weights, key), weights)
        net.eval()
    if form == "adm":
        schedule, predicts = schedule or Discrete.ddpm(), _EPS
    elif form == "flow_matching":
        schedule, predicts = Linear(), _TO_DATA
    elif form is not None:
        schedule, predicts = VE(sigma_max), _DENOISED
    assert schedule is not None and predicts is not None
    if form is None and isinstance(schedule, Discrete) and isinstance(predicts, str):
        predicts = replace(named(predicts), tells=index)
    return Denoiser(net, schedule, predicts, condition, variance=variance, shape=shape)
