"""Representation alignment: hidden tokens of the noisy picture learn to say what a fixed network sees in the clean one.

loss = loss(denoising) - scale mean_n cos(W2 silu(W1 h_n), f(x0)_n)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Alignment", "Likeness"]


class Likeness(nn.Module):
    """mean_n cos(W2 silu(W1 h_n), f(x0)_n): how much a map can say of what a fixed network sees.

    Args:
        sees: f, x0 -> features (B, N, C) or (B, C, *spatial) of N cells in all; it is not trained. Subtract their
            mean over the data: what they all share makes every cosine near 1.
        width, features: channels of h and of f. hidden: between W1 and W2, by default 2 width.
    Raises:
        ValueError: from a call: h has another number of cells than f.
    """

    def __init__(
        self, sees: Callable[[Tensor], Tensor], width: int, features: int, *, hidden: int | None = None
    ) -> None:
        super().__init__()
        # In a tuple, out of the reach of parameters() and state_dict(): it is neither trained nor kept.
        self._sees = (sees,)
        hidden = 2 * width if hidden is None else hidden
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, features))

    def forward(self, h: Tensor, x0: Tensor) -> Tensor:
        """(B,) of h (B, N, width) or (B, width, *spatial) and x0."""
        with torch.no_grad():
            f = _cells(self._sees[0](x0)).float()
        h = _cells(h)
        if h.shape[1] != f.shape[1]:
            raise ValueError(
                f"the hidden state has {h.shape[1]} cells and the features have {f.shape[1]}; they must match"
            )
        return F.cosine_similarity(self.head(h).float(), f, dim=-1).mean(1)


class Alignment(nn.Module):
    """A loss to `fit` with: another one, and how far the network's hidden state is from features of the clean data.

    It spares the network finding out by denoising alone what is in a picture, and costs no time after training. Its
    two layers W1, W2 are trained with the network and kept by its checkpoints only.

    Args:
        loss: (model, batch) -> (B,), as `denoising`; it must call the model's network once.
        sees, width, features, hidden: as for `Likeness`, h having `width` channels.
        at: the module of the network whose output is h, by its path, for example "blocks.2".
        scale: of the alignment.
    Raises:
        ValueError: from the loss: h has another number of cells than f, or the network has no such module.

    Yu et al. 2024, eq. 8 and 9 (REPA), at one of the first layers.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        sees: Callable[[Tensor], Tensor],
        at: str,
        width: int,
        features: int,
        *,
        hidden: int | None = None,
        scale: float = 0.5,
    ) -> None:
        super().__init__()
        self.loss, self.at, self.scale = loss, at, scale
        self.likeness = Likeness(sees, width, features, hidden=hidden)

    def forward(self, model: Any, batch: Mapping[str, Tensor], *, of: Tensor | None = None, **options: Any) -> Tensor:
        """(B,) losses, with the arguments of `loss`; options are handed to it.

        `of` is what the fixed network looks at, by default batch["x"]: for a model of latents, their pictures.
        """
        net = model if isinstance(model, nn.Module) else model.net
        seen: list[Tensor] = []
        try:
            handle = net.get_submodule(self.at).register_forward_hook(lambda _module, _x, h: seen.append(h))
        except AttributeError:
            raise ValueError(f"the network {type(net).__name__} has no module {self.at!r} to align") from None
        try:
            loss = self.loss(model, batch, **options)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ValueError(
                f"{self.at} of {type(net).__name__} must be called once by the loss, was {len(seen)} times"
            )
        return loss - self.scale * self.likeness(seen[0], batch["x"] if of is None else of)


def _cells(h: Tensor) -> Tensor:
    """(B, C, *spatial) or (B, N, C) -> (B, N, C)."""
    return h if h.ndim == 3 else h.flatten(2).transpose(1, 2)
