"""A residual multilayer perceptron for data that is a plain vector."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.nets.attention import modulate, zero
from suffuse.nets.blocks import Conditioning
from suffuse.nets.conditions import Condition, Spatial


@dataclass(eq=False, repr=False)
class MLP(nn.Module):
    """A residual MLP told its time and conditions in every block; a fresh one returns exactly 0.

    h <- h + W2 silu(W1 (norm(h) (1 + scale) + shift)),   (shift, scale) = W silu(time + conditions).

    Args:
        size: numbers per row of data.
        width: hidden channels.
        depth: residual blocks.
        conditions: what it may be told, by name; tokens are averaged, spatial conditions refused.
    Raises:
        ValueError: a spatial condition.
    """

    size: int
    width: int = 256
    depth: int = 4
    conditions: dict[str, Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        for name, spec in self.conditions.items():
            if isinstance(spec, Spatial):
                raise ValueError(f"MLP has no pixels to join {name!r} to: a Spatial condition needs UNet or DiT")
        self.told = Conditioning("MLP", self.conditions, self.width, pool=True)
        self.stem = nn.Linear(self.size, self.width)
        self.blocks = nn.ModuleList(_Block(self.width) for _ in range(self.depth))
        self.norm = nn.LayerNorm(self.width)
        self.out = zero(nn.Linear(self.width, self.size))

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Map noisy rows to whatever the network is trained to predict.

        Args:
            x: (B, size).
            t: (B,), times in [0, 1].
            conditions: every condition it was built with, B rows each.
        Returns:
            (B, size).
        Raises:
            TypeError: a condition is missing or unknown.
            ValueError: a wrong shape.
        """
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ValueError(f"MLP takes x of shape (B, {self.size}), got {tuple(x.shape)}; reshape it first")
        x, told = self.told(x, t, conditions)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, told.embedding)
        return self.out(self.norm(h))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = self.modulation(embedding).chunk(2, -1)
        return h + self.second(F.silu(self.first(modulate(self.norm(h), shift, scale))))
