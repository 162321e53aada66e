"""Training a noise-aware classifier: labels are read from data at every noise level.

x_t = alpha x0 + sigma eps,    loss = - log p(y | x_t)

Its minimum is the exact p(y | x_t), whose gradient `sf.guidance.classifier` guides by. Labels are not smoothed: that
would move the minimum. Dhariwal & Nichol 2021, section 4.

`pooled` averages labels over all rows of the batch that x_t may have come from, E[y | x_t, batch]: the gradient has the
same mean, and at high noise, where x_t says little of the one label it was made with, a fraction of the variance.

    y_i = sum_j r_ij y_j,    r_ij proportional to exp(-|x_t,i - alpha_i x0_j|^2 / (2 sigma_i^2))

Xu et al. 2023 (Stable target field) average targets of the score over a batch in this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse.losses.times import Times, stratified

__all__ = ["noisy_classification"]


def noisy_classification(
    model: Any, batch: Mapping[str, Tensor], *, times: Times = stratified, pooled: bool = False
) -> Tensor:
    """Cross entropy of a classifier of noisy data, by row.

    Args:
        model: (x, t) -> scores (B, K), with a `.schedule`, such as `sf.guidance.NoisyClassifier`.
        batch: "x" is clean data (B, ...), "label" (B,) its class, or (B, K) the probabilities of each class.
        times: (n, device) -> (n,) noise levels to train on, see `losses.times`.
        pooled: average labels over the rows of the batch; costs B^2 distances of data points.
    Returns:
        (B,) losses in nats. Randomness is torch's own: `fit` seeds it by (seed, step).
    """
    x0, t = batch["x"], times(len(batch["x"]), batch["x"].device)
    alpha, sigma = model.schedule(t, like=x0)
    x, label = alpha * x0 + sigma * torch.randn_like(x0), batch["label"]
    scores = model(x, t)
    if pooled:
        label = label if label.ndim == 2 else F.one_hot(label, scores.shape[1])
        label = (_origins(x, x0, alpha, sigma) @ label.double()).to(scores)
    return F.cross_entropy(scores, label, reduction="none")


def _origins(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """r (B, B): how likely it is that row i of x was made of row j of x0."""
    x, x0, alpha, sigma = (v.detach().double().flatten(1) for v in (x, x0, alpha, sigma))
    square = x.square().sum(1, keepdim=True) - 2 * alpha * (x @ x0.mT) + alpha.square() * x0.square().sum(1)
    return (-square / (2 * sigma.square().clamp(min=1e-12))).softmax(1)
