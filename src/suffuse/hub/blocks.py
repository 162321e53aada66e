"""Blocks of diffusers' networks, cut as `sf.nets.cached` wants them.

fast = sf.nets.cached(sf.guide(told, model, 5.0), every=2, blocks=sf.hub.blocks(model))

A transformer is cut after its first block; where picture and prompt go through side by side (SD3, Flux), h is both. A
U-Net is cut below its finest level: all between its first block down and its last one up is spared, and what it brings
back up is kept.   Ma et al. 2024 (DeepCache), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.flux import Flux
from suffuse.hub.sd3 import SD3

__all__ = ["blocks"]


class _Stand:
    """What stands for a block: while its `forward` is replaced, the block's own calls come by here."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self._replaced: Callable[..., Tensor] | None = None

    @property
    def forward(self) -> Callable[..., Tensor]:
        """What the cache calls for an answer that it does not have."""
        return self._run

    @forward.setter
    def forward(self, value: Callable[..., Tensor]) -> None:
        self._replaced, self._before = value, self.block.__dict__.get("forward")
        self.own = self.block.forward
        object.__setattr__(self.block, "forward", self._called)

    @forward.deleter
    def forward(self) -> None:
        if self._before is None:
            object.__delattr__(self.block, "forward")
        else:
            object.__setattr__(self.block, "forward", self._before)

    def _ask(self, *given: Any, **named: Any) -> Tensor:
        assert self._replaced is not None
        return self._replaced(*given, **named)

    def _called(self, *given: Any, **named: Any) -> Any:
        raise NotImplementedError

    def _run(self, *given: Any, **named: Any) -> Tensor:
        raise NotImplementedError


class _Joint(_Stand):
    """(picture, prompt) -> (prompt, picture): h is the prompt's tokens, then the picture's, (B, n + L, d)."""

    def _called(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **named: Any) -> Any:
        n = encoder_hidden_states.shape[1]
        h = self._ask(torch.cat([encoder_hidden_states, hidden_states], 1), n, **named)
        return h[:, :n], h[:, n:]

    def _run(self, h: Tensor, n: int, **named: Any) -> Tensor:
        prompt, picture = self.own(hidden_states=h[:, n:], encoder_hidden_states=h[:, :n], **named)
        return torch.cat([h[:, :n] if prompt is None else prompt, picture], 1)


class _Finest(_Stand):
    """The first block down: x -> (x, what goes across)."""

    def _called(self, *given: Any, **named: Any) -> Any:
        x = given[0] if given else named.pop("hidden_states")
        return self._ask(x, *given[1:], **named), self.across

    def _run(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
        out, self.across = self.own(x, *given, **named)
        return out


class _Deep(_Stand):
    """A deeper part of a U-Net: h says nothing (zeros), and a part that is spared answers as it did before, unheard."""

    def __init__(self, block: nn.Module, last: bool) -> None:
        super().__init__(block)
        self.last = last

    def _called(self, *given: Any, **named: Any) -> Any:
        x = given[0] if given else named.pop("hidden_states")
        out = self._ask(x.new_zeros(len(x), 1, 1, 1), x, len(x), *given[1:], **named)
        return out if self.last else self.answer

    def _run(self, h: Tensor, x: Tensor, rows: int, *given: Any, **named: Any) -> Tensor:
        if len(x) != rows:
            raise ValueError("a U-Net of diffusers is spared whole, by every=, not row by row at a threshold")
        self.answer = self.own(x, *given, **named)
        return self.answer if self.last else h


def blocks(model: Denoiser) -> list[Any]:
    """The blocks of a network from diffusers, for `sf.nets.cached(..., blocks=)`.

    Args:
        model: read by `sf.hub.diffusers`; a U-Net's are for `every=` alone.
    Raises:
        TypeError: a network that is not from diffusers. ValueError: a U-Net of one level.
    """
    net: Any = model.net
    while hasattr(net, "net"):
        net = net.net
    if (unet := getattr(net, "unet", None)) is not None:
        down, up = list(unet.down_blocks), list(unet.up_blocks)
        if len(down) < 2:
            raise ValueError("a U-Net of one level has nothing below it to spare")
        return [
            _Finest(down[0]),
            *(_Deep(b, False) for b in (*down[1:], unet.mid_block, *up[:-2])),
            _Deep(up[-2], True),
        ]
    transformer = getattr(net, "transformer", None)
    if transformer is None:
        raise TypeError(f"{type(net).__name__} is no network that sf.hub.diffusers reads")
    found = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
    return [_Joint(block) for block in found] if isinstance(net, (SD3, Flux)) else found
