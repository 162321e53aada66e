"""SyncDiffusion: windows of a panorama are pushed towards the look of one of them while they are averaged.

x_b,i <- x_b,i - w d distance(x0(x_a,i), x0(x_a,anchor)) / d x_a,i,    and the windows' x_b averaged

written, as `sf.inverse.dps` writes its push, as the x0 that makes `ddim(eta)` take it:
x0_i' = x0_i - w gradient / (d x_b/d x0). With other samplers it is the same to first order.

Approximated: the anchor is not told about the others, and w is no probability: too much of it trades detail for
likeness. The paper moves x_a instead, to the same first order, and then asks the model a second time. It costs one
vector-Jacobian product a view; where alpha/sigma is below 1/1000 x0 has no slope, and nothing is pushed.

Lee et al. 2023 (SyncDiffusion), algorithm 1, with LPIPS as distance and w = 20, falling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import denoiser
from suffuse.inverse.measured import Stride, gain, near, tweedie
from suffuse.joint.views import Joint, Views, asked, each, some, views_of
from suffuse.parameterize import Prediction

__all__ = ["look", "syncdiffusion"]


def look(a: Tensor, b: Tensor) -> Tensor:
    """How unlike two batches of pictures (R, C, H, W) look, whatever lies where in them: (R,).

    Squared differences of each channel's mean and standard deviation, and of the mean slopes across and down: a
    distance of colours and patterns that needs no network.
    """

    def told(x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        spread = ((x - mean[..., None, None]).square().mean((2, 3)) + 1e-4).sqrt()
        slopes = [(x.diff(dim=k).square() + 1e-4).sqrt().mean((2, 3)) for k in (2, 3)]
        return torch.cat([mean, spread, *slopes], 1)

    return (told(a) - told(b)).square().sum(1)


def syncdiffusion(
    model: Any,
    views: Any,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    w: float,
    anchor: int = 0,
    between: tuple[float, float] = (0.0, 1.0),
    eta: float = 0.0,
    weights: Any = None,
    chunk: int | None = None,
) -> Joint:
    """`average`, of views that are pushed towards the look of one.

    Args:
        model, views, weights, chunk: as for `average`.
        distance: (x0 of R views, x0 of the anchor for each) -> (R,), differentiable: how unlike they look.
        w: length of the push for a distance of slope 1, in units of the state; 0 is `average`.
        anchor: number of the view that the others follow.
        between: times where the push acts, inclusive. eta: of the `ddim(eta)` it runs with.
    Raises:
        ValueError: w is negative; times out of [0, 1]; there is no such view; when run, the next time is not known;
            what `average` raises.
    """
    if not 0 <= between[0] <= between[1] <= 1:
        raise ValueError(f"between must be two times 0 <= low <= high <= 1, got {between}")
    if not w >= 0:
        raise ValueError(f"w, the length of the push, must be at least 0, got {w:g}")
    seen = views_of(views, weights, chunk, False, model)
    extra = {"distance": distance, "w": w, "anchor": anchor, "between": between, "eta": eta}
    settings = {"views": seen} | {k: v for k, v in extra.items() if k != "distance"}
    extra |= {"views": seen}
    made = denoiser(_synced, parts=[model], name="syncdiffusion", settings=settings, extra=extra, state=Stride)
    return Joint.of(made, seen)


def _synced(
    z: Tensor,
    t: Any,
    to: Any,
    model: Any,
    *,
    views: Views,
    distance: Callable[[Tensor, Tensor], Tensor],
    w: float,
    anchor: int,
    between: tuple[float, float],
    eta: float,
    state: Stride,
) -> Prediction:
    views.check_white(z)
    n = views.shape(z)[0]
    if not 0 <= anchor < n:
        raise ValueError(f"the anchor must be one of {n} views, got number {anchor}")
    time = _one(t)
    pushes = w > 0 and between[0] <= time <= between[1] and near(model.schedule, time) == time
    begin = time if to is None else state.begin(time, _one(to))
    slope = gain(model.schedule, begin, to, eta, z, "syncdiffusion") if pushes else 1.0
    target = asked(model, views.part(anchor, anchor + 1)(z), t, to, anchor, n).x0.detach() if pushes else z

    def ask(i: int, j: int) -> Tensor:
        y = views.part(i, j)(z)
        if not pushes:
            return asked(model, y, t, to, i, n).x0.unflatten(0, y.shape[:2])
        at = tweedie(some(model, len(z), i, j, n), y.flatten(0, 1), each(t, j - i), each(to, j - i))
        with torch.enable_grad():
            x0 = at.x0.detach().requires_grad_()
            far = distance(x0, target.repeat_interleave(j - i, 0))
            uphill = torch.autograd.grad(far.sum(), x0)[0]
        return (at.x0 - w * at.pull(uphill) / slope).unflatten(0, y.shape[:2])

    return Prediction(z, *model.schedule(t, like=z), x0=views.solve(views.pull(ask, z)))


def _one(t: Any) -> float:
    """The time of the whole batch."""
    if isinstance(t, Tensor) and t.ndim:
        if bool((t != t.flatten()[0]).any()):
            raise ValueError("syncdiffusion pushes a whole step: all rows must be at one time")
        t = t.flatten()[0]
    return float(t)
