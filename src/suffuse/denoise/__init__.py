"""Denoisers: (x, t) -> Prediction, with the schedule they live on.

Any callable `(x, t)` or `(x, t, *, to=None)` that returns a `Prediction` and has `.schedule` is a denoiser.
`Denoiser` makes one from a network; `denoiser(fn, parts=[...])` makes one from others.
"""

from suffuse.denoise.composed import Composed, call, denoiser, fresh, stateless
from suffuse.denoise.network import Condition, Denoiser, Told, check_range, evaluating, networks, together

__all__ = [
    "Composed",
    "Condition",
    "Denoiser",
    "Told",
    "call",
    "check_range",
    "denoiser",
    "evaluating",
    "fresh",
    "networks",
    "stateless",
    "together",
]
