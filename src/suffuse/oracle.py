"""Exact denoisers: data whose score, likelihood and posterior are known in closed form at every noise level.

With x_t = alpha x0 + sigma eps and x0 ~ sum_k w_k N(m_k, C_k):  x_t ~ sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I).
Everything else follows, and everything else in suffuse is tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from suffuse.parameterize import Prediction
from suffuse.random import bits, noise
from suffuse.schedules import Linear, Schedule

__all__ = ["Empirical", "Gaussian", "Mixture"]

_STREAM = 0x0DA7A  # of its own, so that data and noise of one seed are independent


class Mixture:
    """sum_k w_k N(m_k, C_k) under a schedule: a denoiser that is never wrong.

    Args:
        weights: (K,) positive, scaled to sum to 1.
        means: (K, ...) one data point each.
        covs: (K, D, D) with D the size of a data point, or (K, D) diagonals, or (K,) or a number: isotropic variances.
        schedule: where it lives; `.on(schedule)` moves it.
        labels: (K,) integers that `.given(label=...)` selects by; by default each component is its own class.
    Raises:
        ValueError: shapes that do not fit, a weight or variance that is negative.
    """

    conditions = ("label",)

    def __init__(
        self, weights: Any, means: Any, covs: Any, *, schedule: Schedule | None = None, labels: Any = None
    ) -> None:
        means = torch.as_tensor(means)
        self.dtype = means.dtype if means.is_floating_point() else torch.get_default_dtype()
        k, self.shape = means.shape[0], means.shape[1:]
        self.flat = means.reshape(k, -1).double()
        d = self.flat.shape[1]
        w = torch.as_tensor(weights).to(self.flat)
        if w.shape != (k,) or bool((w < 0).any()) or not bool(w.sum() > 0):
            raise ValueError(f"weights must be {k} numbers of at least 0, one a mean, got {w.tolist()[:8]}")
        self.log_weights = (w / w.sum()).log()
        c = torch.as_tensor(covs).to(self.flat)
        self.basis: Tensor | None = None
        if c.shape == (k, d, d):
            c, self.basis = torch.linalg.eigh(c)
        elif c.ndim == 0:
            c = c.expand(k, 1)
        elif c.shape == (k,):
            c = c[:, None]
        elif c.shape != (k, d):
            raise ValueError(f"covs must be ({k}, {d}, {d}), ({k}, {d}), ({k},) or a number, got {tuple(c.shape)}")
        if bool((c < -1e-9 * c.abs().max()).any()):
            raise ValueError(f"covs must be positive semi-definite, the smallest variance is {c.min().item():.3g}")
        self.vars = c.clamp(min=0)  # (K, D), or (K, 1) when isotropic
        self.schedule = schedule or Linear()
        self.labels = torch.arange(k) if labels is None else torch.as_tensor(labels)
        self.label: Tensor | None = None

    def _like(self, **changes: Any) -> Any:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, **changes)
        return new

    def __repr__(self) -> str:
        told = "" if self.label is None else ", label"
        return f"{type(self).__name__}({len(self.flat)} x {tuple(self.shape)} on {self.schedule}{told})"

    def on(self, schedule: Schedule) -> Any:
        """The same data on another schedule."""
        return self._like(schedule=schedule)

    def given(self, label: Any = None) -> Any:
        """The components of one class: an integer, or (B,) one for each row; None for all."""
        if label is None:
            return self._like(label=None)
        label = torch.atleast_1d(torch.as_tensor(label))
        unknown = [v for v in label.tolist() if v not in self.labels.tolist()]
        if unknown:
            raise ValueError(f"label must be one of {sorted(set(self.labels.tolist()))[:12]}, got {unknown[0]}")
        return self._like(label=label)

    def rows(self, index: Any) -> Any:
        """The denoiser of some rows of a batch."""
        return self if self.label is None or len(self.label) == 1 else self._like(label=self.label[index])

    def _levels(self, x: Tensor, t: Any) -> tuple[Tensor, Any, Any, Any, Any]:
        """x as (B, D), and alpha, sigma both for it and for x itself."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"this oracle's data have shape {tuple(self.shape)}, got rows of {tuple(x.shape[1:])}")
        alpha, sigma = self.schedule(t, like=x)
        if isinstance(alpha, Tensor) and alpha.ndim:
            return x.flatten(1), alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1), alpha, sigma
        return x.flatten(1), alpha, sigma, alpha, sigma

    def _whiten(self, x: Tensor, a: Any, s: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals (B, K, D) in each component's axes, their variances (B or 1, K, D or 1), and log w_k p_k (B, K)."""
        if not isinstance(s, Tensor) and s == 0 and not bool(self.vars.all()):
            raise ValueError("points without spread have no density at t = 0: ask at a later time")
        means, basis = self.flat.to(x), None if self.basis is None else self.basis.to(x)
        r = x[:, None] - a * means
        if basis is not None:
            r = torch.einsum("bkd,kde->bke", r, basis)
        var = a * a * self.vars.to(x) + s * s
        var = var.reshape(-1, *self.vars.shape)
        d = x.shape[1]
        logdet = var.log().sum(-1) * (d / var.shape[-1])
        logits = self.log_weights.to(x) - 0.5 * (r * r / var).sum(-1) - 0.5 * (logdet + d * math.log(2 * math.pi))
        if self.label is not None:
            other = self.labels.to(x.device) != self.label.to(x.device)[:, None]
            logits = logits.masked_fill(other, -math.inf)
        return r, var, logits

    def __call__(self, x: Tensor, t: float | Tensor, *, to: Any = None) -> Prediction:
        """The exact (E[x0 | x_t], E[eps | x_t])."""
        flat, a, s, alpha, sigma = self._levels(x, t)
        r, var, logits = self._whiten(flat, a, s)
        share = logits.softmax(1)[..., None]  # (B, K, 1)

        def eps() -> Tensor:
            return self._turn(s * r / var, share).reshape(x.shape)

        def x0() -> Tensor:
            spread = self._turn(a * self.vars.to(x) * r / var, share)
            return (spread + (share[..., 0] @ self.flat.to(x))).reshape(x.shape)

        return Prediction(x, alpha, sigma, x0=x0, eps=eps)

    def _turn(self, r: Tensor, share: Tensor) -> Tensor:
        """sum_k share_k U_k r_k, (B, D)."""
        if self.basis is None:
            return (share * r).sum(1)
        return torch.einsum("bke,kde->bd", share * r, self.basis.to(r))

    def score(self, x: Tensor, t: float | Tensor) -> Tensor:
        """grad_x log p(x, t), of x's shape; also where sigma = 0, if no variance is 0."""
        flat, a, s, _, _ = self._levels(x, t)
        r, var, logits = self._whiten(flat, a, s)
        return -self._turn(r / var, logits.softmax(1)[..., None]).reshape(x.shape)

    def log_prob(self, x: Tensor, t: float | Tensor = 0.0) -> Tensor:
        """log p(x, t), (B,), in nats; under a label, the density of that class (its weights scaled to sum to 1)."""
        flat, a, s, _, _ = self._levels(x, t)
        total = self._whiten(flat, a, s)[2].logsumexp(1)
        if self.label is not None:
            mine = self.labels == self.label[:, None]
            total = total - self.log_weights.masked_fill(~mine, -math.inf).logsumexp(1).to(x)
        return total

    def sample(self, n: int, seed: int) -> Tensor:
        """n exact draws, (n, ...), in the dtype the means were given in; draw i depends on (seed, i)."""
        log_w = self.log_weights.expand(n, -1)
        if self.label is not None:
            log_w = log_w.masked_fill(self.labels != self.label[:, None], -math.inf)
        u = (bits((n, 1), seed, stream=_STREAM)[:, 0].double() + 0.5) * 2.0**-32
        cdf = log_w.softmax(1).cumsum(1)
        k = (u[:, None] > cdf).sum(1).clamp(max=len(self.flat) - 1)
        z = noise((n, self.flat.shape[1]), seed, stream=_STREAM + 1, dtype=torch.float64) * self.vars[k].sqrt()
        if self.basis is not None:
            z = torch.einsum("be,bde->bd", z, self.basis[k])
        return (self.flat[k] + z).reshape(n, *self.shape).to(self.dtype)

    def mean(self) -> Tensor:
        """The mean of the data, of a data point's shape."""
        return (self.log_weights.exp() @ self.flat).reshape(self.shape).to(self.dtype)

    def cov(self) -> Tensor:
        """The covariance of the data, (D, D)."""
        w = self.log_weights.exp()
        centred = self.flat - w @ self.flat
        spread = torch.einsum("k,kd,ke->de", w, centred, centred)
        return (torch.einsum("k,kde->de", w, self._covs()) + spread).to(self.dtype)

    def _covs(self) -> Tensor:
        if self.basis is None:
            return torch.diag_embed(self.vars.expand(self.flat.shape))
        return torch.einsum("kde,ke,kfe->kdf", self.basis, self.vars, self.basis)

    def posterior(self, A: Tensor, y: Tensor, sigma: float) -> Mixture:
        """p(x0 | y) for one measurement y = A x0 + sigma n: again a mixture.

        Args:
            A: (M, D). y: (M,). sigma: standard deviation of the measurement noise, positive.
        Raises:
            ValueError: shapes that do not fit; sigma is not positive.
        """
        if A.shape[1:] != self.flat.shape[1:] or y.shape != A.shape[:1]:
            raise ValueError(f"A must be (M, {self.flat.shape[1]}) and y (M,), got {tuple(A.shape)}, {tuple(y.shape)}")
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma:g}")
        A, y = A.to(self.flat), y.to(self.flat)
        covs = self._covs()
        cross = covs @ A.T  # (K, D, M)
        S = A @ cross + sigma**2 * torch.eye(len(y), dtype=A.dtype, device=A.device)
        gain = torch.linalg.solve(S, cross.mT).mT
        r = y - self.flat @ A.T
        evidence = torch.distributions.MultivariateNormal(torch.zeros_like(r), S).log_prob(r)
        means = self.flat + torch.einsum("kdm,km->kd", gain, r)
        post = covs - gain @ cross.mT
        weights = (self.log_weights + evidence).softmax(0)
        made = Mixture(
            weights, means.reshape(-1, *self.shape), (post + post.mT) / 2, schedule=self.schedule, labels=self.labels
        )
        return made._like(dtype=self.dtype)


class Gaussian(Mixture):
    """N(mean, cov) under a schedule.

    Args:
        mean: a data point. cov: (D, D), (D,) a diagonal, or a number: an isotropic variance.
    """

    def __init__(self, mean: Any, cov: Any, *, schedule: Schedule | None = None) -> None:
        mean = torch.as_tensor(mean)
        cov = torch.as_tensor(cov)
        super().__init__([1.0], mean[None], cov[None] if cov.ndim else cov, schedule=schedule)


class Empirical(Mixture):
    """The data set itself: the denoiser that an infinitely large, overfitted network would be.

    Args:
        points: (N, ...) equally likely. labels: (N,) for `.given(label=...)`.
    """

    def __init__(
        self, points: Tensor, *, schedule: Schedule | None = None, labels: Sequence[int] | None = None
    ) -> None:
        super().__init__(torch.ones(len(points)), points, 0.0, schedule=schedule, labels=labels)
