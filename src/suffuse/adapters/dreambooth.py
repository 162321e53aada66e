"""DreamBooth: a model that learns one thing from a few pictures, and keeps what it knows of the thing's class.

loss = L(pictures, "a [V] square") + weight L'(pictures that the model itself made of "a square", "a square")

where L' is L in the paper, and may be another.

Ruiz et al. 2023, eq. 2. What is trained is the caller's choice: the whole network, a LoRA, a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from suffuse.adapters.places import copied, lifted

__all__ = ["own", "prior_preserving"]

PRIOR = "prior_"


def prior_preserving(
    loss: Callable[[Any, Mapping[str, Tensor]], Tensor],
    weight: float = 1.0,
    prior: Callable[[Any, Mapping[str, Tensor]], Tensor] | None = None,
) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
    """The loss of DreamBooth from a loss such as `sf.losses.denoising`.

    Args:
        loss: (model, batch) -> (B,).
        weight: of the class's pictures; 0 leaves them out, and with them what keeps the class as it was.
        prior: (model, batch) -> (B,) of the class's pictures, by default `loss`. `sf.losses.imitation` of the base
            keeps more of the class.
    Returns:
        (model, batch) -> (B,), where each entry of the batch has a partner for the class, "x" and "prior_x", "text"
        and "prior_text".
    Raises:
        ValueError: the weight is negative or not finite; a batch without partners.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be a finite number of at least 0, got {weight}")

    def of(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        names = [name for name in batch if not name.startswith(PRIOR)]
        instance = loss(model, {name: batch[name] for name in names})
        if weight == 0:
            return instance
        lost = [PRIOR + name for name in names if PRIOR + name not in batch]
        if lost:
            raise ValueError(f"prior preservation needs {', '.join(lost)} in the batch, which has {', '.join(batch)}")
        return instance + weight * (prior or loss)(model, {name: batch[PRIOR + name] for name in names})

    return of


def own(model: Any) -> Any:
    """The model with weights of its own, all of them trained: for DreamBooth without a LoRA."""
    return lifted(model, lambda net: copied(net, own=True))
