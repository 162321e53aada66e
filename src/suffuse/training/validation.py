"""The validation loss by noise level, on noise that never changes: two looks at a model differ by the model alone.

In each bin of logsnr, the mean over held-out rows of |error of v|^2 on a variance preserving schedule, which is
|error of eps|^2 / sigmoid(logsnr) = |error of x0|^2 / sigmoid(-logsnr), whatever the network predicts.

Kingma et al. 2021, figure 3, and Karras et al. 2022, figure 5, look at training in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import call, networks
from suffuse.random import noise

__all__ = ["validation"]

_STREAM = 0x7A11D


def validation(
    data: Mapping[str, Tensor],
    *,
    bins: int = 8,
    low: float = -8.0,
    high: float = 8.0,
    seed: int = 0,
    batch_size: int = 256,
) -> Callable[[Any], dict[str, float]]:
    """What `fit(watch=...)` takes to measure held-out data by noise level.

    Args:
        data: "x" is held-out data (N, ...), every other entry a condition by name. N evaluations a bin.
        bins: equal parts of logsnr from `low` (or the model's noisiest level, if that is higher) to `high`.
        seed: of the noise: row i in bin k has its own, at a logsnr of its own, spread evenly over the bin.
        batch_size: rows at once, which changes nothing but speed.
    Returns:
        A function of any denoiser: {"val_loss": mean of the bins, "val_loss_-8_-6": that bin, ...}.
    Raises:
        ValueError: no bins, no data, high not above the model's noisiest level.
    """
    n = len(data.get("x", ()))
    if bins < 1 or n == 0 or any(len(value) != n for value in data.values()):
        sizes = {name: len(value) for name, value in data.items()}
        raise ValueError(f"validation needs 'x' and conditions of one first size, and bins >= 1, got {sizes}, {bins}")

    def look(model: Any) -> dict[str, float]:
        end = model.schedule.logsnr(1.0)
        edges = torch.linspace(max(low, end), high, bins + 1, dtype=torch.float64)
        if not edges[-1] > edges[0]:
            raise ValueError(f"bins run up from logsnr {edges[0].item():.3g}: high must be above, got {high:g}")
        found = {}
        for k, (a, b) in enumerate(zip(edges.tolist(), edges[1:].tolist(), strict=False)):
            places = ((torch.arange(n, dtype=torch.float64) + 0.5) * 0.6180339887498949) % 1  # even, whatever N is
            t = model.schedule.time(a + (b - a) * places).clamp(0, 1)
            errors = [_errors(model, data, t, seed, k, i, min(i + batch_size, n)) for i in range(0, n, batch_size)]
            found[f"val_loss_{a:.3g}_{b:.3g}"] = torch.cat(errors).mean().item()
        return {"val_loss": sum(found.values()) / bins} | found

    return look


def _errors(model: Any, data: Mapping[str, Tensor], t: Tensor, seed: int, k: int, first: int, end: int) -> Tensor:
    device = next((p.device for net in networks(model) for p in net.parameters()), None)
    batch = {name: value[first:end].to(device) for name, value in data.items()}
    x0 = batch.pop("x")
    eps = noise(x0.shape, seed, step=k, stream=_STREAM, first=first, dtype=x0.dtype).to(x0.device)
    times = t[first:end].to(x0)
    alpha, sigma = model.schedule(times, like=x0)
    p = call(model.given(**batch) if batch else model, alpha * x0 + sigma * eps, times)
    v = (alpha * (p.eps - eps) - sigma * (p.x0 - x0)) / (alpha**2 + sigma**2).sqrt()
    return v.square().flatten(1).mean(1).double()
