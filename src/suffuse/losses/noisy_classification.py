"""Training a noise-aware classifier: labels are read from data at every noise level.

x_t = alpha x0 + sigma eps,    loss = - log p(y | x_t)

Its minimum is the exact p(y | x_t), whose gradient `sf.guidance.classifier` guides by. Labels are not smoothed: that
would move the minimum. Dhariwal & Nichol 2021, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.losses.times import Times, stratified

__all__ = ["noisy_classification"]


def noisy_classification(model: Any, batch: Mapping[str, Tensor], *, times: Times = stratified) -> Tensor:
    """Cross entropy of a classifier of noisy data, by row.

    Args:
        model: (x, t) -> scores (B, K), with a `.schedule`, such as `sf.guidance.NoisyClassifier`.
        batch: "x" is clean data (B, ...), "label" (B,) its class, or (B, K) the probabilities of each class.
        times: (n, device) -> (n,) noise levels to train on, see `losses.times`.
    Returns:
        (B,) losses in nats. Randomness is torch's own: `fit` seeds it by (seed, step).
    """
    x0, t = batch["x"], times(len(batch["x"]), batch["x"].device)
    alpha, sigma = model.schedule(t, like=x0)
    return F.cross_entropy(model(alpha * x0 + sigma * torch.randn_like(x0), t), batch["label"], reduction="none")
