"""A network that is asked about a few rows at a time, so that memory does not grow with the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.denoise.network import each
from suffuse.hub.control import replaced

__all__ = ["Split", "split"]


class Split(nn.Module):
    """net(x, t, **told), at most `most` rows a call."""

    def __init__(self, net: nn.Module, most: int) -> None:
        super().__init__()
        self.net, self.most = net, most
        self.conditions: dict[str, Any] = dict(getattr(net, "conditions", {}))

    def forward(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        if len(x) <= self.most:
            return self.net(x, t, **told)
        out = []
        for first in range(0, len(x), self.most):
            rows = slice(first, first + self.most)
            part = {name: each(lambda v, rows=rows: v[rows], value) for name, value in told.items()}
            out.append(self.net(x[rows], t[rows], **part))
        return torch.cat(out)


def split(model: Denoiser, rows: int) -> Denoiser:
    """The same denoiser, its network asked about at most `rows` rows at a time (a guided pair is two rows).

    Every row has the answer that it has in the whole batch, up to rounding.

    Args:
        model: whose network is a torch module; attach ControlNets and LoRA first.
        rows: at least 1.
    Raises:
        TypeError: the network is no module. ValueError: fewer than 1 row.
    """
    if not isinstance(model.net, nn.Module):
        raise TypeError(f"only a torch module can be asked in parts, got {type(model.net).__name__}")
    if isinstance(rows, bool) or int(rows) != rows or rows < 1:
        raise ValueError(f"rows must be a whole number of at least 1, got {rows}")
    made = replaced(model, Split(model.net, int(rows)))
    made.conditions = dict(model.conditions)
    return made
