"""Two-dimensional sets, in which item i depends on (seed, i) only: more points go on where fewer ended.

sf.data.toys.swiss_roll(2048, seed=0)["x"]                      (N, 2) float32
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suffuse.random import bits, noise

__all__ = ["checkerboard", "gaussians", "mode_centres", "moons", "pinwheel", "swiss_roll"]


def _uniform(n: int, k: int, seed: int, stream: int) -> Tensor:
    """(N, K) float64 in [0, 1)."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return bits((n, k), seed, stream=stream).double() * 2.0**-32


def _normal(n: int, seed: int, stream: int) -> Tensor:
    """(N, 2) float64; `step` keeps it apart from the words of `_uniform`, with which it would else be one."""
    return noise((n, 2), seed, stream=stream, step=1, dtype=torch.float64)


def _roll_moments() -> tuple[float, float]:
    """Mean and standard deviation of both coordinates of the roll taken together, by its density in t."""
    pi, mean, square = math.pi, 0.0, 0.0
    for a, share in ((1.5 * pi, 3 / 8), (2.5 * pi, 2 / 8), (3.5 * pi, 3 / 8)):
        b = a + pi

        def first(t: float) -> float:  # integral of t cos t + t sin t
            return t * math.sin(t) + math.cos(t) - t * math.cos(t) + math.sin(t)

        mean += share * (first(b) - first(a)) / (b - a) / 2
        square += share * (b**3 - a**3) / (3 * (b - a)) / 2
    return mean, math.sqrt(square - mean**2)


def swiss_roll(n: int, seed: int) -> dict[str, Tensor]:
    """The swiss roll of the KAIST diffusion course: (t cos t, t sin t), moved and scaled by one number each.

    t is uniform in thirds of [1.5 pi, 4.5 pi] of weights 3/8, 2/8, 3/8 (scikit-learn's roll with its hole, seen from
    the side). Over both axes together the mean is 0 and the standard deviation 2, in expectation instead of over the
    set, so that sets of any size lie on the same curve.

    Args:
        n: points. seed: 0 to 2^64 - 1.
    Returns:
        "x" (N, 2); "t" (N,), the angle.
    """
    u = _uniform(n, 2, seed, 11)
    third = torch.searchsorted(torch.tensor([3 / 8, 5 / 8], dtype=torch.float64), u[:, 0].contiguous(), right=True)
    t = math.pi * (1.5 + third + u[:, 1])
    mean, std = _roll_moments()
    x = (torch.stack((t * t.cos(), t * t.sin()), 1) - mean) / std * 2
    return {"x": x.float(), "t": t.float()}


def moons(n: int, seed: int, *, spread: float = 0.1) -> dict[str, Tensor]:
    """Two half circles of radius 1 that reach into each other, centred, with Gaussian noise of `spread`.

    Returns:
        "x" (N, 2), "label" (N,) 0 for the upper moon and 1 for the lower.
    """
    u = _uniform(n, 2, seed, 12)
    label, angle = (u[:, 0] >= 0.5).long(), math.pi * u[:, 1]
    upper = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), 1)
    lower = torch.stack((0.5 - angle.cos(), 0.25 - angle.sin()), 1)
    x = torch.where(label[:, None] == 0, upper, lower) + spread * _normal(n, seed, 12)
    return {"x": x.float(), "label": label}


def checkerboard(n: int, seed: int, *, cells: int = 4) -> dict[str, Tensor]:
    """Uniform on the dark cells of a board of `cells` x `cells` on [-2, 2]^2; `cells` is even.

    Returns:
        "x" (N, 2).
    """
    if cells < 2 or cells % 2:
        raise ValueError(f"cells must be even and at least 2, got {cells}")
    u = _uniform(n, 3, seed, 13)
    row = u[:, 0] * cells
    column = 2 * (u[:, 1] * (cells // 2)).floor() + row.floor() % 2 + u[:, 2]
    return {"x": (torch.stack((column, row), 1) * (4 / cells) - 2).float()}


def gaussians(n: int, seed: int, *, modes: int = 8, layout: str = "ring", spread: float = 0.1) -> dict[str, Tensor]:
    """Equal Gaussians of standard deviation `spread`, on a ring of radius 2 or on a square grid on [-2, 2]^2.

    Args:
        n, seed: as above. modes: how many; of a grid a square number, as 25.
        layout: "ring" or "grid".
    Returns:
        "x" (N, 2), "label" (N,) the mode; `mode_centres` has their centres.
    """
    centres = mode_centres(modes, layout)
    label = (_uniform(n, 1, seed, 14)[:, 0] * modes).long()
    x = centres[label] + spread * _normal(n, seed, 14)
    return {"x": x.float(), "label": label}


def mode_centres(modes: int, layout: str) -> Tensor:
    """Centres of `gaussians`, (modes, 2) float64.

    Raises:
        ValueError: another layout, fewer than 2 modes, or a grid of no square number.
    """
    if layout == "ring" and modes > 1:
        angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
        return 2 * torch.stack((angle.cos(), angle.sin()), 1)
    side = math.isqrt(max(modes, 0))
    if layout == "grid" and side > 1 and side**2 == modes:
        line = torch.linspace(-2, 2, side, dtype=torch.float64)
        return torch.cartesian_prod(line, line)
    raise ValueError(
        f"gaussians lie on a 'ring' of 2 or more or a 'grid' of 4, 9, 16, 25 ..., got {modes} on {layout!r}"
    )


def pinwheel(
    n: int, seed: int, *, arms: int = 5, radial: float = 0.3, across: float = 0.05, twist: float = 0.25
) -> dict[str, Tensor]:
    """Gaussians stretched along `arms` spokes at radius 1, turned by twist * e^r radians and doubled.

    Johnson et al. 2016.

    Args:
        n, seed: as above. arms: how many. radial, across: standard deviations along and across a spoke.
        twist: radians of turn where r = 0.
    Returns:
        "x" (N, 2), "label" (N,) the arm.
    """
    if arms < 1:
        raise ValueError(f"arms must be at least 1, got {arms}")
    label = (_uniform(n, 1, seed, 15)[:, 0] * arms).long()
    z = _normal(n, seed, 15)
    along, side = 1 + radial * z[:, 0], across * z[:, 1]
    angle = 2 * math.pi * label / arms + twist * along.exp()
    x = torch.stack((along * angle.cos() - side * angle.sin(), along * angle.sin() + side * angle.cos()), 1)
    return {"x": (2 * x).float(), "label": label}
