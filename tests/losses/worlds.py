"""A flow that is known exactly, and a two-time network that is its map."""

import torch
from torch import nn

from suffuse import Denoiser, oracle, schedules

M, C = 0.4, 0.3  # mean and variance of the data, in each of two dimensions
WORLD = oracle.Gaussian(torch.tensor([M, M], dtype=torch.float64), C)


class Exact(nn.Module):
    """The mean slope of the flow of N(M, C) between two times on the linear schedule, and ways to leave it by row."""

    conditions = ("to",)

    def __init__(self, rows=0, m=M):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(rows, 3, dtype=torch.float64))
        self.m = m

    def forward(self, x, t, to=None):
        t, s = t.double()[:, None], (torch.zeros_like(t) if to is None else to).double()[:, None]
        spread, there = (((1 - a) ** 2 * C + a**2) ** 0.5 for a in (t, s))
        r = x - (1 - t) * self.m
        u = -self.m + r / spread * (C * (t + s - 2) + t + s) / (spread + there)
        if len(self.theta):
            a, b, c = self.theta[: len(x)].unsqueeze(-1).unbind(1)
            u = u + a + b * x * t + c * torch.sin(2 * x + s)
        return u


def exact(rows=0, m=M):
    return Denoiser(Exact(rows, m), schedules.Linear(), "velocity")
