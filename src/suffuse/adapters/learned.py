"""Training what was attached and nothing else: checkpoints and averages hold no weight of the base."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Learned"]


class Learned(nn.Module):
    """The weights of a network that are trained, for `fit(loss, data, Learned(model), ...)`.

    They are the network's own tensors, so that a loss about the model sees them:

        learned = Learned(model)
        fit(lambda _, batch: sf.losses.denoising(model, batch), data, learned, steps=1000, ema=0.99).ema.into(model)

    Args:
        model: a module, or a `Denoiser` around one.
    Raises:
        ValueError: nothing in it is trained.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        for name, weight in _trained(model).items():
            self.register_parameter(name.replace(".", "/"), weight)

    def into(self, model: Any) -> None:
        """Copy the values into a network that learns the same.

        Raises:
            ValueError: it learns something else.
        """
        own = dict(self.named_parameters())
        theirs = {name.replace(".", "/"): value for name, value in _trained(model).items()}
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in theirs.items()}:
            raise ValueError(f"the network learns {len(theirs)} weights and these are {len(own)} others")
        with torch.no_grad():
            for name, value in own.items():
                theirs[name].copy_(value)


def _trained(model: Any) -> dict[str, nn.Parameter]:
    net = model if isinstance(model, nn.Module) else model.net
    found = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(f"nothing in this {type(net).__name__} is trained: attach something to it first")
    return found
