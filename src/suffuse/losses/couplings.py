"""Couplings: which noise goes with which data; functions x0 -> (x0, eps).

Rows of x0 stay where they are, so that conditions keep their rows; eps alone is chosen. Given pairs (reflow) need no
coupling: a batch with an entry "eps" is trained on as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Coupling", "immiscible", "independent", "optimal_transport"]

Coupling = Callable[[Tensor], tuple[Tensor, Tensor]]


def independent(x0: Tensor) -> tuple[Tensor, Tensor]:
    """eps ~ N(0, I), whatever x0 is."""
    return x0, torch.randn_like(x0)


def optimal_transport(x0: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of noise, put into the order with the least total |x0_i - eps_i|^2: straighter flows.

    The noise of a batch stays exactly N(0, I); what a batch of B pairs to is the plan of B points, which is the plan
    of the distributions only as B grows. With conditions it makes eps depend on them within a batch.

    Needs scipy (`pip install 'suffuse[metrics]'`); O(B^3) on the CPU.
    Pooladian et al. 2023; Tong et al. 2024, section 4 (OT-CFM); Li et al. 2024 (immiscible diffusion by assignment).
    """
    from scipy.optimize import linear_sum_assignment

    eps = torch.randn_like(x0)
    cost = torch.cdist(x0.flatten(1).double(), eps.flatten(1).double()).square()
    _, order = linear_sum_assignment(cost.cpu().numpy())
    return x0, eps[torch.from_numpy(order).to(eps.device)]


def immiscible(x0: Tensor, *, k: int = 8) -> tuple[Tensor, Tensor]:
    """Of k draws of noise for each row, the nearest: cheap and without a batch, but its noise is not quite N(0, I).

    The chosen noise leans towards x0, by up to the expected largest of k normals, and towards small |eps|.

    Args:
        k: draws a row; 1 is `independent`.
    Raises:
        ValueError: k < 1.
    Li et al. 2025 (improved immiscible diffusion, nearest of k).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    eps = torch.randn(k, *x0.shape, device=x0.device, dtype=x0.dtype)
    nearest = (eps - x0).flatten(2).square().sum(2).argmin(0)
    return x0, eps[nearest, torch.arange(len(x0), device=x0.device)]
