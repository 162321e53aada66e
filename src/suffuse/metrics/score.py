"""Inception-style score, with any classifier: sharp answers on each picture, and all answers over the set.

IS = exp(E KL(p(y|x) || p(y)))                                                                  Salimans et al. 2016
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, by_halves

__all__ = ["classifier_score"]


def classifier_score(probabilities: Tensor, *, classifier: str, seed: int = 0) -> Measured:
    """The score of a set by a classifier's probabilities (N, K): from 1 to K. Only Inception's is an "Inception score".

    Args:
        probabilities: rows that add to 1. classifier: which one, for the record. seed: of the halves.
    Raises:
        ValueError: rows that do not add to 1, or fewer than 10 samples a class.
    """
    p = probabilities.detach().double()
    if p.ndim != 2 or bool((p < 0).any()) or not torch.allclose(p.sum(1), p.new_ones(()), atol=1e-4):
        raise ValueError("probabilities must be (N, K) with rows of numbers from 0 that add to 1: softmax the scores")
    n, k = p.shape
    if n < 10 * k:
        raise ValueError(f"the score of {k} classes needs at least {10 * k} samples, got {n}")

    def score(p: Tensor) -> float:
        marginal = p.mean(0)
        return (torch.special.entr(marginal).sum() - torch.special.entr(p).sum(1).mean()).exp().item()

    return by_halves(
        score,
        (p,),
        f"exp of the mean divergence of p(y|x) from p(y) over {k} classes",
        seed=seed,
        times=100,
        features=classifier,
        estimator="one split, biased by n",
        convention=f"1 to {k}",
    )
