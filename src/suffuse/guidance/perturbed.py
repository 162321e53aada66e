"""Perturbed-attention guidance: away from what the network says when it may not look around.

x0 = x0' + w (x0 - x0'),    x0' from the network with softmax(q k^T/sqrt(d)) replaced by the identity in some layers

No condition is needed, and no second model. w = 1 is off; the paper's scale is w - 1.

Ahn et al. 2024 (Self-rectifying diffusion sampling with perturbed-attention guidance).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from suffuse.denoise import Composed, Denoiser
from suffuse.guidance.cfg import guide
from suffuse.guidance.interval import Pair
from suffuse.nets.taps import Attention, attend, sites, tapped

__all__ = ["pag", "perturbed"]


class Perturbed(nn.Module):
    """A network whose chosen self-attentions see nothing but themselves; it shares the weights."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.names = net, tuple(names)

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """As the network's own."""
        before = {site.name: site.tap for site in sites(self.net)}

        def identity(site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            if site.name in self.names:
                return v
            tap = before[site.name]
            return attend(q, k, v, mask) if tap is None else tap(site, q, k, v, mask)

        with tapped(self.net, identity):
            return self.net(x, t, **conditions)


def perturbed(model: Denoiser, where: Callable[[Attention], bool] | None = None) -> Denoiser:
    """The same model, with the identity for attention in some layers.

    Args:
        model: of a network with attention.
        where: which of its self-attentions (`sf.nets.sites(net)` lists all, with names); by default the middle one.
    Raises:
        TypeError: the model is not a `Denoiser` around a network: perturb before guiding.
        ValueError: the network has no self-attention.
    """
    if not isinstance(model, Denoiser) or not isinstance(model.net, nn.Module):
        raise TypeError(f"perturbed takes a Denoiser around a network, before any guidance, got {model!r}")
    own = [site for site in sites(model.net) if site.kind == "self"]
    if not own:
        raise ValueError(f"{type(model.net).__name__} has no self-attention to perturb")
    chosen = [own[len(own) // 2]] if where is None else [site for site in own if where(site)]
    new = copy.copy(model)
    new.net = Perturbed(model.net, [site.name for site in chosen])
    return new


def pag(
    model: Denoiser,
    w: float | Tensor,
    *,
    where: Callable[[Attention], bool] | None = None,
    between: Pair = (0.0, 1.0),
    logsnr: Pair | None = None,
) -> Composed:
    """guide(model, perturbed(model, where), w): w = 1 is off. Two forwards a step.

    Args:
        model, where: as for `perturbed`. w, between, logsnr: as for `guide`.
    Raises:
        TypeError, ValueError: as for these.
    """
    return guide(model, perturbed(model, where), w, between=between, logsnr=logsnr)
