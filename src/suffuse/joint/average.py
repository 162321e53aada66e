"""Averaging over views of one canonical state: MultiDiffusion, and Visual Anagrams with orthogonal views.

x0(z, t) = (A.T W A)^+ A.T W [x0_i(A_i z, t)],      eps likewise: z = alpha x0 + sigma eps holds for both,

since the merging of views of z is z. For the same reason merging the noise, the clean data, or the states that a step
leads to is all one here, with every sampler that is linear in them: `sample` compares them where it is not.

Bar-Tal et al. 2023 (MultiDiffusion), eq. 3; Geng et al. 2024 (Visual Anagrams), section 3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import denoiser
from suffuse.joint.views import Joint, Views, asked, views_of
from suffuse.parameterize import Prediction

__all__ = ["average"]


def average(model: Any, views: Any, *, weights: Any = None, chunk: int | None = None) -> Joint:
    """What the model believes of a canonical state, from all its views.

    Args:
        model: a denoiser of views; its conditions have 1 row, or B n: the n views of item 0, then those of item 1.
        views: a linear operator (B, *canonical) -> (B, n, *view) such as `Crops`, n operators, or `Views`.
        weights: at least 0; (n,) one a view, or anything that broadcasts against (n, *view).
        chunk: how many views are looked at together; None is all.
    Returns:
        A denoiser of canonical data (B, *canonical): `sf.sample(average(model, views), noise, steps=30)`.
    Raises:
        TypeError: a view is not linear. ValueError: views that leave values uncovered, or that do not keep white noise
            white; weights that do not fit.
    """
    seen = views_of(views, weights, chunk, False, model)
    made = denoiser(_averaged, parts=[model], name="average", settings={"views": seen}, extra={"views": seen})
    return Joint.of(made, seen)


def _averaged(z: Tensor, t: Any, to: Any, model: Any, *, views: Views) -> Prediction:
    views.check_white(z)
    n = views.shape(z)[0]

    def ask(i: int, j: int) -> Tensor:
        y = views.part(i, j)(z)
        return asked(model, y, t, to, i, n).x0.unflatten(0, y.shape[:2])

    return Prediction(z, *model.schedule(t, like=z), x0=views.solve(views.pull(ask, z)))
