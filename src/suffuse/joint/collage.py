"""DiffCollage: a chain of overlapping windows as a factor graph, p(x) = prod_i p(window_i) / prod_i p(overlap_i).

eps(z, t) = sum_i A_i.T eps(A_i z, t) - sum_i B_i.T eps(B_i z, t),     A_i window i, B_i its overlap with the next

and x0 likewise, since every value lies in one window more than overlaps.

Approximated: the factorisation holds for clean data whose windows are independent given their overlaps, and is used at
every noise level, where it does not; and the model of windows is asked about overlaps, which it may never have seen.

Zhang et al. 2023 (DiffCollage), eq. 6 (chains and loops).
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from torch import Tensor

from suffuse.denoise import denoiser
from suffuse.joint.segments import Segments
from suffuse.joint.views import Joint, Views, asked, views_of
from suffuse.operators import Crops
from suffuse.parameterize import Prediction

__all__ = ["collage"]


def collage(model: Any, windows: Crops | Segments, *, overlap: Any = None, chunk: int | None = None) -> Joint:
    """What the model believes of a chain (or, wrapped, a loop) of windows.

    Args:
        model: a denoiser of windows; its conditions have 1 row or B n.
        windows: one row of `Crops`, or `Segments`.
        overlap: a denoiser of overlaps, whose conditions have 1 row or one an overlap; by default the model itself.
        chunk: how many windows are looked at together; None is all.
    Raises:
        TypeError: other views. ValueError: crops in several rows.
    """
    if not isinstance(windows, (Crops, Segments)):
        raise TypeError(f"collage takes a row of windows, Crops or Segments, got {windows!r}")
    if isinstance(windows, Crops) and len({top for top, _ in windows.corners}) > 1:
        raise ValueError(f"collage takes windows in one row, as high as the canvas, got {windows!r}: take average")
    seen = views_of(windows, None, chunk, False, model)
    parts = _overlaps(windows)
    shared = [Views(A, chunk=chunk, holes=True) for A in parts]
    made = denoiser(
        _collaged,
        parts=[model, overlap or model],
        name="collage",
        settings={"windows": windows},
        extra={"views": seen, "shared": shared},
    )
    whole = windows.at([corner for A in parts for corner in A.corners])
    return Joint.of(made, seen, Views(whole))


def _overlaps(windows: Any) -> list[Any]:
    """What each window shares with the next, those of one width together, in order."""
    crops, corners, made = isinstance(windows, Crops), windows.corners, []
    wide, length = (windows.size[1], windows.canvas[1]) if crops else (windows.size, windows.length)
    n = len(corners)
    for k in range(n if windows.wrap and n > 1 else n - 1):
        here, ahead = corners[k], corners[(k + 1) % n]
        shared = wide - ((ahead[1] - here[1] if crops else ahead - here) % length)
        if shared > 0:
            made.append((shared, ahead))
    result = []
    for shared, group in groupby(made, lambda part: part[0]):
        size = (windows.size[0], shared) if crops else shared
        result.append(windows.at([corner for _, corner in group], size))
    return result


def _collaged(z: Tensor, t: Any, to: Any, model: Any, overlap: Any, *, views: Views, shared: list[Views]) -> Prediction:
    views.check_white(z)
    total, known, done = _sum(z, t, to, model, views, 0, None), sum(v.n or 0 for v in shared), 0
    for part in shared:
        total = total - _sum(z, t, to, overlap, part, done, known)
        done += part.n or 0
    return Prediction(z, *model.schedule(t, like=z), x0=total)


def _sum(z: Tensor, t: Any, to: Any, model: Any, views: Views, done: int, n: int | None) -> Tensor:
    count = n or views.shape(z)[0]

    def ask(i: int, j: int) -> Tensor:
        y = views.part(i, j)(z)
        return asked(model, y, t, to, done + i, count).x0.unflatten(0, y.shape[:2])

    return views.pull(ask, z)
