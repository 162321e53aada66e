"""Classifier guidance: the gradient of a noise-aware classifier says which way a label lies.

eps <- eps - s sigma grad log p(y | x_t),       x0 <- x0 + s (sigma^2/alpha) grad log p(y | x_t)       s = 0 is off

s = 1 with the exact p(y | x_t) is p(x0 | y), exactly. No other s is p(x0) p(y | x0)^s, not even for classes that do not
overlap: its noised likelihood is E[p(y | x0)^s | x_t], which is not p(y | x_t)^s. `steer` with log p(y | x0) as reward
samples it.

Dhariwal & Nichol 2021, algorithms 1 and 2; Song et al. 2021 (score-based SDE), section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Composed, call, denoiser
from suffuse.guidance.guided import Guided, by_row
from suffuse.parameterize import Prediction
from suffuse.schedules import Schedule

__all__ = ["NoisyClassifier", "classifier"]

_LOWEST = 1e-3  # alpha/sigma below which a classifier can tell nothing: asked there instead, the limit is reached


class NoisyClassifier(nn.Module):
    """A network that reads labels from noisy data; train it with `sf.losses.noisy_classification`.

    log p(y | x_t) = log softmax of the mean over places of net(x_t / sqrt(alpha^2 + sigma^2), t)

    Args:
        net: (x, t) -> (B, K) or (B, K, *spatial), such as nets.UNet(1, out_channels=10).
        schedule: the noise levels it is for.
    """

    def __init__(self, net: Callable[..., Tensor], schedule: Schedule) -> None:
        super().__init__()
        self.net, self.schedule = net, schedule

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Scores (B, K) of x (B, ...) at times t, a number or (B,)."""
        alpha, sigma = self.schedule(t, like=x)
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        out = self.net(x / (alpha * alpha + sigma * sigma) ** 0.5, t)
        return out if out.ndim == 2 else out.flatten(2).mean(2)


def classifier(model: Any, judge: Any, label: Any, s: float | Tensor = 1.0) -> Composed:
    """Guide a denoiser to a label that a classifier reads.

    Args:
        model: any denoiser, conditional or not.
        judge: (x, t) -> scores (B, K), log p(y | x_t) up to a constant, differentiable in x, with the `.schedule` of
            the model: a `NoisyClassifier`.
        label: one class, or (B,). s: scale, 0 is off and costs nothing; a number, or (B,).
    Raises:
        ValueError: s is not finite; the two live on different schedules; when asked, a label the judge does not know,
            or labels of another number than the rows.
    """
    finite = bool(s.isfinite().all()) if isinstance(s, Tensor) else math.isfinite(s)
    if not finite:
        raise ValueError(f"s must be a finite number, got {s}")
    label = torch.atleast_1d(torch.as_tensor(label))
    return denoiser(
        _classified, parts=[model, judge], name="classifier", settings={"s": s}, rows={"label": label, "s": s}
    )


def _classified(x: Tensor, t: Any, to: Any, model: Any, judge: Any, *, label: Tensor, s: float | Tensor) -> Prediction:
    p = call(model, x, t, to)
    if not isinstance(s, Tensor) and s == 0:
        return Guided.of(p, p)
    push = by_row(s, x) * _slope(judge, x, t, label)  # 0 at sigma = 0
    ratio = p.alpha / (p.sigma.clamp(min=1e-30) if isinstance(p.sigma, Tensor) else max(p.sigma, 1e-30))
    out = Prediction(x, p.alpha, p.sigma, x0=lambda: p.x0 + push, eps=lambda: p.eps - ratio * push)
    out.fraction = p.fraction
    return Guided.of(out, p)


def _slope(judge: Any, x: Tensor, t: Any, label: Tensor) -> Tensor:
    """(sigma^2/alpha) grad log p(y | x_t), like x; the gradient is switched on here and only here."""
    schedule = judge.schedule
    end = schedule.time(2 * math.log(_LOWEST))
    time = t.clamp(max=end) if isinstance(t, Tensor) else min(t, end)
    (a, b), (alpha, sigma) = schedule(t, like=x), schedule(time, like=x)
    size = ((alpha * alpha + sigma * sigma) / (a * a + b * b)) ** 0.5
    through = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        at = x * size if through else (x.detach() * size).requires_grad_()
        scores = judge(at, time).log_softmax(1)
        if bool((label < 0).any()) or int(label.max()) >= scores.shape[1]:
            raise ValueError(f"the classifier knows labels 0 to {scores.shape[1] - 1}, got {label.tolist()[:8]}")
        if len(label) not in (1, len(x)):
            raise ValueError(f"labels must be one, or one for each of {len(x)} rows, got {len(label)}")
        told = scores.gather(1, label.to(x.device).expand(len(x))[:, None]).sum()
        (slope,) = torch.autograd.grad(told, at, create_graph=through)
    return (sigma * sigma / alpha) * slope
