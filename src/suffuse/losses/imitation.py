"""A network that goes on answering as another does.

L = |out(x_t, t) - out_base(x_t, t)|^2,    x_t = alpha x0 + sigma eps

At the base's own samples and without its randomness: where `denoising` on them would teach their few pictures, this
teaches the whole conditional mean, and is 0 for the base itself.

Distillation (Hinton et al. 2015) of a denoiser; as a prior it takes the place of DreamBooth's second term (Ruiz et al.
2023, eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.losses.denoising import corrupt
from suffuse.losses.times import Times, stratified

__all__ = ["imitation"]


def imitation(model: Denoiser, batch: Mapping[str, Tensor], *, base: Denoiser, times: Times = stratified) -> Tensor:
    """Mean squared difference of two networks' raw outputs at the same noisy states, told the same, by row.

    Args:
        model: what is trained. base: what it imitates, of the same schedule and parameterization.
        batch: "x" is clean data (B, ...), every other entry is a condition by name. times: see `losses.times`.
    Returns:
        (B,) losses, 0 where both are the same. Randomness is torch's own, as in `denoising`.
    Raises:
        ValueError: another schedule or parameterization. TypeError: a condition that one of them does not take.
    """
    for name in ("schedule", "parameterization"):
        got, wanted = getattr(model, name), getattr(base, name)
        if got != wanted:
            raise ValueError(f"a model imitates one of its own {name}: it has {got}, the base {wanted}")
    told = {name: value for name, value in batch.items() if name not in ("x", "eps")}
    model, _, _, x, t = corrupt(model, batch, times, 0.0)
    with torch.no_grad():
        wanted = base.given(**told).output(x, t)[0]
    return (model.output(x, t)[0] - wanted).square().flatten(1).mean(1)
