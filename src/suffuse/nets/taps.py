"""One tap on every attention: read or change what any network attends to, without touching the network.

For example, with `sharpen` a function from probabilities to probabilities:

    with tapped(net, lambda site, q, k, v, mask: attend(q, k, v, mask, edit=sharpen)):
        x = sample(...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, edit: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Mix values by how well their keys match each query.

    edit(softmax(q k^T / sqrt(d))) v

    Args:
        q: queries (B, heads, L, d).
        k, v: keys and values (B, heads, M, d).
        mask: bool, broadcastable to (B, heads, L, M); True may be attended to. Every query needs one True.
        edit: function of the probabilities (B, heads, L, M) that returns the ones to use.
    Returns:
        (B, heads, L, d).

    Vaswani et al. 2017, eq. 1.
    """
    # On CPUs the fused kernel, and above all its backward, loses to three plain operations at these lengths.
    short = q.device.type == "cpu" and k.shape[-2] <= (256 if q.dtype == torch.bfloat16 else 64)
    # It never forms the probabilities, and has no forward-mode derivative (torch.func.jvp).
    if edit is None and not short and forward_ad._current_level < 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    probabilities = scores.softmax(-1)
    return (probabilities if edit is None else edit(probabilities)) @ v


class Attention(nn.Module):
    """The site of one attention in a network: `attend`, or the tap that `tapped` put there.

    Args:
        kind: "self" where x attends to itself, "cross" where it attends to a condition.
    """

    def __init__(self, kind: Literal["self", "cross"]) -> None:
        super().__init__()
        self.kind = kind
        self.name = ""
        self.tap: Tap | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """As in `attend`."""
        return attend(q, k, v, mask) if self.tap is None else self.tap(self, q, k, v, mask)


Tap = Callable[[Attention, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def sites(net: nn.Module) -> list[Attention]:
    """List the attentions of a network in the order they were built, each with its path in `.name`."""
    found = []
    for name, module in net.named_modules():
        if isinstance(module, Attention):
            module.name = name
            found.append(module)
    return found


@contextmanager
def tapped(net: nn.Module, fn: Tap) -> Iterator[list[Attention]]:
    """Let `fn` do every attention of `net` inside the `with` block; then put back what was there before.

    Args:
        net: any module with `Attention` in it.
        fn: (site, q, k, v, mask) -> (B, heads, L, d); it may call `attend`, look at `site.name` and `site.kind`.
    Raises:
        ValueError: the network has no attention to tap.
    """
    found = sites(net)
    if not found:
        raise ValueError(f"{type(net).__name__} has no attention to tap")
    before = [site.tap for site in found]
    try:
        for site in found:
            _set(site, fn)
        yield found
    finally:
        for site, tap in zip(found, before, strict=True):
            _set(site, tap)


def _set(site: Attention, tap: Tap | None) -> None:
    # Past Module.__setattr__, which would enrol a tap that is a module among the network's own parameters.
    object.__setattr__(site, "tap", tap)
