"""Views, and priors of views for which the whole is known."""

import torch

import suffuse as sf
from suffuse import joint
from suffuse import operators as ops

F64 = torch.float64
CANVAS = (4, 11)
WINDOWS = {
    "crops": (ops.Crops((4, 5), (4, 3), CANVAS), (1, *CANVAS)),
    "wrapped": (ops.Crops((4, 5), (4, 2), CANVAS, wrap=True), (2, *CANVAS)),
    "grid": (ops.Crops(3, 2, (7, 6)), (1, 7, 6)),
    "segments": (joint.Segments(5, 2, 12), (2, 12)),
    "loop": (joint.Segments(4, 3, 10, wrap=True), (1, 10)),
}
SQUARE = (1, 4, 4)
ORTHOGONAL = {
    "turns": [ops.Identity(), ops.Turn(1), ops.Turn(2)],
    "jigsaw": [ops.Identity(), ops.jigsaw(2, (4, 4), 3), ops.negative()],
    "inner": [ops.inner_rotation(1, (4, 4), radius=2), ops.Flip(-2) @ ops.Turn(3)],
}
SCHEDULES = {"linear": sf.schedules.Linear(), "vp": sf.schedules.VP()}


def normal(*shape, seed=0):
    return sf.noise(shape, seed=seed, dtype=F64)


def views(A, z):
    """Views as (B, n, ...) of an operator or several."""
    return A(z) if not isinstance(A, list) else torch.stack([one(z) for one in A], 1)


def dense(A, shape, weights):
    """(A.T W A)^+ A.T W as a matrix, from nothing but A and linear algebra."""
    d = int(torch.Size(shape).numel())
    M = views(A, torch.eye(d, dtype=F64).reshape(d, *shape)).flatten(1).T
    root = weights.to(F64).flatten().sqrt()
    return torch.linalg.pinv(root[:, None] * M, rtol=1e-10) * root


class PerView:
    """A denoiser whose row r is N(mean[r], cov[r]): what a network told another prompt for each view would be."""

    def __init__(self, means, covs, schedule):
        self.means, self.covs, self.schedule = means, covs, schedule

    def rows(self, index):
        return PerView(self.means[index], self.covs if self.covs.ndim == 0 else self.covs[index], self.schedule)

    def __call__(self, x, t, *, to=None):
        a, s = self.schedule(t, like=x)
        mean = self.means.flatten(1)
        r = x.flatten(1) - a * mean
        if self.covs.ndim == 0:
            x0 = mean + a * self.covs / (a * a * self.covs + s * s) * r
        else:
            eye = torch.eye(mean.shape[1], dtype=F64)
            x0 = mean + a * (self.covs @ torch.linalg.solve(a * a * self.covs + s * s * eye, r[..., None]))[..., 0]
        return sf.Prediction(x, a, s, x0=x0.reshape(x.shape))
