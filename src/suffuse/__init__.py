"""suffuse: diffusion and flow models in one small algebra, every part proved against a case whose answer is known.

import suffuse as sf

model = sf.Denoiser(net, sf.schedules.Linear(), predicts="velocity")
noise = sf.noise((16, 3, 32, 32), seed=0)
x = sf.sample(model.given(label=3), noise, steps=20)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "BrownianPath": "random",
    "Codec": "codec",
    "Denoiser": "denoise",
    "Prediction": "parameterize",
    "cached": "nets",
    "denoiser": "denoise",
    "fit": "training",
    "guide": "guidance",
    "load": "training",
    "log_prob": "samplers",
    "noise": "random",
    "run": "samplers",
    "sample": "samplers",
    "save": "training",
}
__all__ = [
    "BrownianPath",
    "Codec",
    "Denoiser",
    "Prediction",
    "__version__",
    "adapters",
    "cached",
    "control",
    "data",
    "denoise",
    "denoiser",
    "fields",
    "fit",
    "grids",
    "guidance",
    "guide",
    "hub",
    "inverse",
    "joint",
    "load",
    "log_prob",
    "losses",
    "metrics",
    "nets",
    "noise",
    "operators",
    "oracle",
    "parameterize",
    "random",
    "recipes",
    "run",
    "sample",
    "samplers",
    "save",
    "schedules",
    "training",
]

if TYPE_CHECKING:
    from suffuse import (
        adapters,
        control,
        data,
        denoise,
        fields,
        grids,
        guidance,
        hub,
        inverse,
        joint,
        losses,
        metrics,
        nets,
        operators,
        oracle,
        parameterize,
        random,
        recipes,
        samplers,
        schedules,
        training,
    )
    from suffuse.codec import Codec
    from suffuse.denoise import Denoiser, denoiser
    from suffuse.guidance import guide
    from suffuse.nets import cached
    from suffuse.parameterize import Prediction
    from suffuse.random import BrownianPath, noise
    from suffuse.samplers import log_prob, run, sample
    from suffuse.training import fit, load, save


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f"suffuse.{_WHERE[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"suffuse.{name}")
    else:
        raise AttributeError(f"module 'suffuse' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
