"""Sampling many views as one thing: two choices, where the state lives and what is merged.

With P = (A.T W A)^+ A.T W, which makes canonical data of views, and views x_i, every step merges one of

    x0      x0_i  <- A_i P(x0),   eps_i rebuilt from x_i
    eps     eps_i <- A_i P(eps),  x0_i rebuilt from x_i
    x       x_i   <- A_i P(x)                                  after the step
    step    x_i   <- x_i + A_i P(change of x)                  after the step, which each view took by itself

    state="canonical":  x_i = A_i z, of one noise z in canonical space, of which later noise is drawn as well
    state="views":      every view begins with noise of its own, and draws its own

With the state in canonical space the four are one (`average`). With the state in the views, what they disagree about,
u_i = x_i - A_i P(x), is multiplied by sigma_s/sigma_t in a step of DDIM from t to s under x0, by alpha_s/alpha_t under
eps, stays under step, and is 0 under x. So x0 ends with views that agree, and needs no canonical noise: its state may
be views that interpolate, whose A_i z would not be white. Where a view shows nothing of the canonical space (beside a
mesh) it keeps its own belief.

Kim et al. 2024 (SyncTweedies), section 3: x0 in the views is SyncTweedies, x in the canonical space MultiDiffusion
(Bar-Tal et al. 2023), eps in the canonical space Visual Anagrams (Geng et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from suffuse import samplers
from suffuse.denoise import denoiser
from suffuse.joint.average import average
from suffuse.joint.views import Joint, Views, asked, views_of
from suffuse.parameterize import Prediction
from suffuse.random import BrownianPath

__all__ = ["MERGES", "agree", "sample"]

MERGES = ("x0", "eps", "x", "step")
STATES = ("canonical", "views")


def agree(
    model: Any,
    views: Any,
    *,
    merge: str | None = "x0",
    weights: Any = None,
    chunk: int | None = None,
    holes: bool = False,
) -> Joint:
    """What the model believes of views (B, n, *view), each a state of its own, after they have agreed on x0 or eps.

    Args:
        model, views, weights, chunk: as for `average`. merge: "x0", "eps", or None: every view for itself.
        holes: whether the canonical space may have values that no view sees; they are 0.
    Raises:
        ValueError: another merge; eps where alpha = 0, which then says nothing of x0.
    """
    if merge not in ("x0", "eps", None):
        raise ValueError(f"what a belief merges is 'x0' or 'eps', got {merge!r}")
    seen = views_of(views, weights, chunk, holes, model)
    made = denoiser(
        _agreed,
        parts=[model],
        name="agree",
        settings={"views": seen, "merge": merge},
        extra={"views": seen, "merge": merge},
    )
    return Joint.of(made, seen)


def _agreed(x: Tensor, t: Any, to: Any, model: Any, *, views: Views, merge: str | None) -> Prediction:
    alpha, sigma = model.schedule(t, like=x)
    if merge == "eps" and not isinstance(alpha, Tensor) and alpha == 0:
        raise ValueError(
            f"merging eps says nothing of x0 at t={float(t):g}, where alpha = 0: begin below with start= or a grid, "
            "take another schedule with .on(schedule), or merge x0"
        )
    n, wanted, own = x.shape[1], merge or "x0", []
    like = canonical(views, x)
    blind = None if merge is None else views.blind(like)

    def ask(i: int, j: int) -> Tensor:
        p = asked(model, x[:, i:j], t, to, i, n)
        part = (p.x0 if wanted == "x0" else p.eps).unflatten(0, (len(x), j - i))
        if blind is not None:
            own.append(part)
        return part

    if merge is None:
        return Prediction(x, alpha, sigma, x0=torch.cat([ask(i, j) for i, j in views.chunks(n)], 1))
    agreed = views.A(views.solve(views.pull(ask, like)))
    if blind is not None:
        agreed = torch.where(blind, torch.cat(own, 1), agreed)
    return Prediction(x, alpha, sigma, **{wanted: agreed})


def canonical(views: Views, x: Tensor) -> Tensor:
    """Zeros of canonical shape for views (B, n, *view)."""
    if x.ndim < 3 or views.n not in (None, x.shape[1]):
        raise ValueError(f"the state in views of {views!r} is (B, n, ...) with n = {views.n}, got {tuple(x.shape)}")
    z = torch.zeros_like(views.A.adjoint(x))
    if views.shape(z) != tuple(x.shape[1:]):
        raise ValueError(f"{views!r} makes views {views.shape(z)}, the noise is for {tuple(x.shape[1:])}")
    return z


class _Seen:
    """The noise that views see of a canonical path."""

    def __init__(self, path: BrownianPath, views: Views) -> None:
        self.path, self.views = path, views

    def increment(self, a: float, b: float) -> Tensor:
        return self.views.A(self.path.increment(a, b))

    def renew(self) -> None:
        self.path.renew()


class _Merging:
    """A sampler of views that merges after every step; told a canonical shape, it draws its noise there."""

    def __init__(self, inner: Any, views: Views, merge: str, shape: tuple[int, ...] | None) -> None:
        self.inner, self.views, self.merge, self.shape = inner, views, merge, shape
        if hasattr(inner, "grid"):
            self.grid = inner.grid

    def run(self, denoiser: Any, x: Tensor, path: Any) -> Iterator[Any]:
        if path is not None and self.shape is not None:
            own = BrownianPath(self.shape, path.seed, first=path.first, device=path.device, dtype=path.dtype)
            path = _Seen(own, self.views)
        A, merge, like, before = self.views.A, self.views.merge, canonical(self.views, x), x
        for step in self.inner.run(denoiser, x, path):
            if self.merge == "x":
                step.x = self._beside(step.x, A(merge(step.x, like)), like)
            elif self.merge == "step":
                change = step.x - before
                before = step.x = before + self._beside(change, A(merge(change, like)), like)
            yield step

    def _beside(self, own: Tensor, merged: Tensor, like: Tensor) -> Tensor:
        blind = self.views.blind(like)
        return merged if blind is None else torch.where(blind, own, merged)


def sample(
    model: Any,
    views: Any,
    noise: Tensor,
    *,
    state: str = "canonical",
    merge: str = "x0",
    weights: Any = None,
    chunk: int | None = None,
    holes: bool = False,
    sampler: Any = None,
    steps: int | None = None,
    nfe: int | None = None,
    grid: Any = None,
    **how: Any,
) -> Tensor:
    """Sample a canonical thing whose views a model knows.

    Args:
        model, views, weights, chunk: as for `average`.
        noise: standard normal, (B, *canonical) for state="canonical", (B, n, *view) for state="views".
        state, merge: see above.
        holes: for state="views": whether values that no view sees are allowed; they are 0.
        sampler, steps, nfe, grid, how: as for `sf.sample`: seed, first, start, grad.
    Returns:
        (B, *canonical).
    Raises:
        ValueError: an unknown state or merge; what `average` and `agree` raise.
    """
    if state not in STATES or merge not in MERGES:
        raise ValueError(f"state must be one of {STATES} and merge one of {MERGES}, got {state!r} and {merge!r}")
    if holes and state == "canonical":
        raise ValueError("holes would stay noise with the state in canonical space: state='views' leaves them 0")
    seen = views_of(views, weights, chunk, holes, model)
    budget = {"sampler": sampler, "steps": steps, "nfe": nfe, "grid": grid}
    if state == "canonical" and merge in ("x0", "eps"):
        return samplers.sample(average(model, seen), noise, **budget, **how)
    x, start, shared = noise, how.get("start"), state == "canonical"
    if shared:
        seen.check_white(noise)
        x = seen.A(noise)
        if start is not None:
            how["start"] = (seen.A(start[0]), start[1])
    time = None if start is None else float(start[1])
    plan = samplers.plan_for(model.schedule, **budget, start=time, size=noise[0].numel())
    merging = _Merging(plan, seen, merge, tuple(noise.shape) if shared else None)
    each = agree(model, seen, merge=merge if merge in ("x0", "eps") else None)
    return seen.merge(samplers.sample(each, x, sampler=merging, **how), canonical(seen, x))
