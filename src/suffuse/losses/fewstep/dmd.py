"""Distribution matching: a generator whose samples follow the gradient of KL(its own density || the data's).

    x = G(z),  x_t = alpha x + sigma eps:    grad_x KL = E_(t, eps)[ w (x0_fake(x_t) - x0_real(x_t)) ]

x0_real is the teacher's; x0_fake that of a second model, which learns by denoising what the generator makes now. The
generator moves on every few steps only, so that the second model keeps up (two time scales). With `steps` > 1 it starts
from its own earlier jumps (backward simulation), as `samplers.consistency` will run it. A critic of noised samples, if
given (`Critic`), adds what the teacher does not know (softplus of its logit).

w = 1 / mean |x - x0_real| by row, or (alpha/sigma)^2 for the exact gradient of the KL at each time ("kl").

Yin et al. 2024 (DMD), eq. 7 and 8; Yin et al. 2024 (DMD2), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.denoise import Denoiser, call
from suffuse.losses.denoising import denoising
from suffuse.losses.fewstep.straight import believed
from suffuse.losses.times import Times, stratified
from suffuse.schedules import left

__all__ = ["DMD", "distribution_matching"]


def distribution_matching(
    real: Any,
    fake: Any,
    x: Tensor,
    *,
    told: Any = None,
    w: float = 1.0,
    weight: str = "adaptive",
    times: Times = stratified,
) -> Tensor:
    """A loss (B,) whose gradient in x is that of the KL, a sum over coordinates: |x - sg(x - gradient)|^2 / 2.

    Args:
        real, fake: denoisers of the data and of the samples, on one schedule. x: samples (B, ...).
        told: the denoiser whose conditions both are told. w: guidance of `real`, 1 is off.
        weight: "adaptive" or "kl". times: of the noise.
    Raises:
        ValueError: an unknown weight; different schedules; guidance twice.
    """
    if weight not in ("adaptive", "kl"):
        raise ValueError(f"weight must be 'adaptive' or 'kl', got {weight!r}")
    t, eps = times(len(x), x.device).clamp(1e-3, 1 - 1e-3), torch.randn_like(x)
    alpha, sigma = real.schedule(t, like=x)
    told = real if told is None else told
    with torch.no_grad():
        noisy = alpha * x + sigma * eps
        data, own = believed(real, told, noisy, t, w=w).x0, believed(fake, told, noisy, t).x0
        size = left((x - data).abs().flatten(1).mean(1).clamp(min=1e-6), x)
        pull = (own - data) * (1 / size if weight == "adaptive" else (alpha / sigma).square())
    return (x - (x - pull).detach()).square().flatten(1).sum(1) / 2


class DMD(nn.Module):
    """Distribution matching as a loss of `fit`, which trains the second model and the critic along.

    Args:
        teacher: x0_real, frozen; told what the batch says.
        fake: x0_fake, a `Denoiser` around a network of its own, best a copy of the teacher's.
        steps: of the generator, uniform in t.
        w: guidance of the teacher that the generator takes over, 1 is off.
        every: the generator learns in one batch of so many.
        critic: (x_t, t, **conditions) -> (B,) logits of being data, a `Critic` on `fake`, or None. adversarial: its
            share of the loss.
        weight, times: of `distribution_matching`.
    Raises:
        ValueError: steps or every < 1.
    """

    calls: Tensor

    def __init__(
        self,
        teacher: Any,
        fake: Denoiser,
        *,
        steps: int = 1,
        w: float = 1.0,
        every: int = 5,
        critic: nn.Module | None = None,
        adversarial: float = 0.01,
        weight: str = "adaptive",
        times: Times = stratified,
    ) -> None:
        super().__init__()
        if steps < 1 or every < 1:
            raise ValueError(f"steps and every must be at least 1, got {steps} and {every}")
        self.teacher, self.fake, self.critic = [teacher], fake, critic  # a list: not to be trained
        inside = critic is not None and any(module is fake.net for module in critic.modules())
        self.net = None if inside else fake.net  # kept once
        self.steps, self.w, self.every, self.adversarial = steps, w, every, adversarial
        self.weight, self.times = weight, times
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, model: Denoiser, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) losses of whatever learns in this batch."""
        told = {k: v for k, v in batch.items() if k not in ("x", "eps")}
        model, real = model.given(**told), batch["x"]
        turn = int(self.calls) % self.every == self.every - 1
        if self.training:
            self.calls += 1
        with torch.set_grad_enabled(turn):
            x = self.generate(model, torch.randn_like(real))
        if not turn:
            loss = denoising(self.fake, {"x": x, **told}, times=self.times)
            if self.critic is not None:
                loss = loss + F.softplus(-self._logit(real, told)) + F.softplus(self._logit(x, told))
            return loss
        loss = distribution_matching(
            self.teacher[0], self.fake, x, told=model, w=self.w, weight=self.weight, times=self.times
        )
        if self.critic is not None:
            loss = loss + self.adversarial * F.softplus(-self._logit(x, told, frozen=True)) * x[0].numel()
        return loss

    def generate(self, model: Denoiser, z: Tensor) -> Tensor:
        """x0 at a random one of the steps, after the jumps before it; the last jump alone keeps its graph."""
        last = int(torch.randint(self.steps, ()))
        x = z
        for k in range(last + 1):
            t = 1 - k / self.steps
            alpha, sigma = model.schedule(t)
            with torch.set_grad_enabled(torch.is_grad_enabled() and k == last):
                start = x * (alpha**2 + sigma**2) ** 0.5 if k == 0 else alpha * x + sigma * torch.randn_like(x)
                x = call(model, start, t, 0.0).x0
        return x

    def _logit(self, x: Tensor, told: Mapping[str, Tensor], frozen: bool = False) -> Tensor:
        assert self.critic is not None
        t = self.times(len(x), x.device)
        alpha, sigma = self.fake.schedule(t, like=x)
        noisy = alpha * x + sigma * torch.randn_like(x)
        if not frozen:
            return self.critic(noisy, t, **told)
        weights = {name: value.detach() for name, value in self.critic.named_parameters()}
        return torch.func.functional_call(self.critic, weights, (noisy, t), dict(told))
