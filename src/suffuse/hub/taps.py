"""Taps on the attentions of diffusers' networks, so that `sf.nets.tapped` and `sf.guidance.pag` work on them.

A site is put inside every attention that is found by its shape (a module with a `processor`), whatever its family.
While a tap is set there, the call of `scaled_dot_product_attention` that the processor makes goes to the tap instead;
without one nothing is touched.

Sites are named after the module ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.site"). Their kind is "cross"
for attention to the prompt alone, else "self": where picture and prompt attend to both together (SD3, Flux), too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from suffuse.nets.taps import Attention

__all__ = ["with_sites"]


class _Caught(TorchFunctionMode):
    """Attention of torch inside a `with`, done by a site's tap."""

    def __init__(self, site: Attention) -> None:
        super().__init__()
        self.site = site

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _attention(self.site, *args, **(kwargs or {}))


def _attention(
    site: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **ignored: Any,
) -> Tensor:
    """Torch's arguments as a tap's, (B, heads, L, d); a mask that adds a large negative number becomes one of bools."""
    if is_causal:
        raise ValueError(f"{site.name} attends to the past only, which a tap cannot be told")
    if scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask > -1000
    return site(query, key, value, attn_mask)


def _enter(module: Any, args: Any) -> None:
    if module.site.tap is not None:
        module.caught = _Caught(module.site)
        module.caught.__enter__()


def _leave(module: Any, args: Any, out: Any) -> None:
    caught = module.__dict__.pop("caught", None)
    if caught is not None:
        caught.__exit__(None, None, None)


def with_sites(net: Any, matches: Callable[[nn.Module], bool] = lambda m: hasattr(m, "processor")) -> Any:
    """The same network, with a site for `sf.nets.tapped` in every attention.

    Args:
        net: of diffusers, with attentions by `torch.nn.functional.scaled_dot_product_attention`.
        matches: which of its modules are attentions.
    """
    for module in [m for m in net.modules() if matches(m)]:
        module.site = Attention("cross" if getattr(module, "is_cross_attention", False) else "self")
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, always_call=True)
    return net
