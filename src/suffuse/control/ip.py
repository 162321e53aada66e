"""IP-Adapter: a picture as a prompt, by attention of its own beside the attention to the text.

out = attention(q, k, v) + strength attention(q, K c, V c),   c tokens of the picture;  V begins at zero

Every attention to a condition gets one; in networks that attend to everything together (MMDiT, Flux), every attention.

Ye et al. 2023, eq. 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.adapters.places import put
from suffuse.control.picture import Hint, Picture
from suffuse.control.route import Route
from suffuse.control.steered import Control, asked, attached, inner
from suffuse.denoise import Denoiser
from suffuse.nets.attention import zero
from suffuse.nets.taps import Attention, attend, sites

__all__ = ["Decoupled", "IPAdapter", "ip_adapter"]


class Decoupled(Attention):
    """The site of an attention, with attention to a picture added while there is one.

    Args:
        site: what stood here. heads, size: of its queries. tokens: channels of the picture's tokens.
    """

    def __init__(self, site: Attention, heads: int, size: int, tokens: int) -> None:
        super().__init__(site.kind)  # type: ignore[arg-type]
        self.tap = site.tap
        self.heads = heads
        self.seen: tuple[Tensor, Tensor] | None = None
        self.before = site if isinstance(site, Decoupled) else None  # another picture's
        self.k = nn.Linear(tokens, heads * size, bias=False)
        self.v = zero(nn.Linear(tokens, heads * size, bias=False))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = super().forward(q, k, v, mask) if self.before is None else self.before(q, k, v, mask)
        if self.seen is None:
            return out
        tokens, strength = self.seen
        mine, theirs = (layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.k, self.v))
        return out + strength.to(out)[:, None, None, None] * attend(q, mine.to(q), theirs.to(q))


class _Seen(Picture):
    """The condition of an IP-Adapter: tokens that an encoder makes of a picture when it is given.

    Args:
        encode, shape: as for `IPAdapter`. channels, dims, clock: as for `Picture`.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        channels: int,
        dims: int,
        clock: Callable[[float], Any],
    ) -> None:
        super().__init__(channels, dims, 1, clock)
        self.encode, self.shape = encode, shape

    def check(self, name: str, value: Any) -> dict[str, Tensor]:
        """Take pictures (rows, C, H, W) in [-1, 1] of any size that the encoder reads, or a `Hint` of them."""
        hint = self.read(name, value)
        with torch.no_grad():
            tokens = self.encode(hint.picture)
        if tuple(tokens.shape[1:]) != self.shape:
            raise ValueError(f"the encoder of {name} made tokens {tuple(tokens.shape[1:])}, at first {self.shape}")
        return {"picture": tokens} | self.acting(name, hint, len(tokens))

    def null(self, name: str, x: Tensor) -> dict[str, Tensor]:
        """NaN for every row of x."""
        blank = torch.full((len(x), *self.shape), torch.nan, device=x.device, dtype=x.dtype)
        return {"picture": blank} | {k: v.to(x.device) for k, v in self.acting(name, Hint(blank), len(x)).items()}

    def fits(self, name: str, picture: Tensor, x: Tensor) -> None:
        """Tokens fit any x."""


class IPAdapter(Control):
    """See above.

    Args:
        net: whose attentions are replaced. path: as for `Control`. queries: (heads, size) of attentions by name.
        encode: from pictures (B, C, H, W) to tokens (B, M, D). shape: (M, D).
        channels, dims: of the pictures.
    """

    kind = "ip"

    def __init__(
        self,
        net: nn.Module,
        path: Route,
        queries: dict[str, tuple[int, int]],
        encode: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        channels: int,
        dims: int,
    ) -> None:
        super().__init__(path, channels, 1)
        self.arguments = {}
        self.encode, self.shape, self.dims, self.places = encode, shape, dims, list(queries)
        width = shape[-1]
        self.depth = max(
            (len(_stack(s)) for n in queries if isinstance(s := net.get_submodule(n), Decoupled)), default=0
        )
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        made = {n: Decoupled(net.get_submodule(n), *size, width) for n, size in queries.items()}  # type: ignore[arg-type]
        for name, site in made.items():
            put(net, name, site)

    def condition(self, tell: Callable[[float], Any]) -> Picture:
        """Pictures that the encoder reads."""
        return _Seen(self.encode, self.shape, self.channels, self.dims, tell)

    @contextmanager
    def within(self, net: nn.Module, picture: Tensor, strength: Tensor) -> Iterator[None]:
        """While inside, the attentions look at the picture."""
        tokens, stacks = self.project(picture), [_stack(net.get_submodule(name)) for name in self.places]
        taps = [[site.tap for site in stack] for stack in stacks]
        try:
            for name, stack in zip(self.places, stacks, strict=True):
                stack[self.depth].seen = (tokens, strength)
                for site in stack:
                    if site.tap is None and name.endswith(".site"):  # of the bridge, which asks a site for its tap only
                        object.__setattr__(site, "tap", _plain)
            yield
        finally:
            for stack, before in zip(stacks, taps, strict=True):
                stack[self.depth].seen = None
                for site, tap in zip(stack, before, strict=True):
                    object.__setattr__(site, "tap", tap)


def _stack(site: Any) -> list[Decoupled]:
    """All that look at pictures at one place, in the order in which they were attached."""
    return [] if site is None else [*_stack(site.before), site]


def _plain(site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def ip_adapter(
    model: Denoiser,
    encode: Callable[[Tensor], Tensor],
    example: Tensor,
    *,
    name: str = "image",
    x: Tensor | None = None,
) -> Denoiser:
    """A model that can be prompted by pictures; fresh, it is the model bit for bit.

    Args:
        model, name, x: as for `controlnet`.
        encode: from pictures (B, C, H, W) to tokens (B, M, D); frozen, asked when a picture is given.
        example: a picture (1, C, H, W) that it reads.
    Raises:
        ValueError: the encoder makes no tokens; the network has no attention that x goes through.
    """
    with torch.no_grad():
        shape = tuple(encode(example).shape[1:])
    if len(shape) != 2:
        raise ValueError(f"an image encoder makes tokens (B, M, D), got {(len(example), *shape)}")

    def build(net: nn.Module, path: Route, factor: int) -> Control:
        of = queries(model, net, path)
        return IPAdapter(net, path, of, encode, shape, example.shape[1], example.ndim - 2)

    return attached(model, x, name, build)


def queries(model: Denoiser, net: nn.Module, path: Route) -> dict[str, tuple[int, int]]:
    """(heads, size) of the attentions to a condition that x goes through; without any, of all that it goes through."""
    found: dict[str, tuple[str, tuple[int, int]]] = {}
    known = {id(site): site for site in sites(net)}

    def note(site: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.requires_grad:
            found[site.name] = (site.kind, (q.shape[1], q.shape[3]))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    taps = {i: site.tap for i, site in known.items()}
    try:
        for site in known.values():
            object.__setattr__(site, "tap", note)
        with torch.enable_grad():
            asked(model, net, torch.zeros(1, path.channels, *path.spatial).requires_grad_(True))
    finally:
        for i, site in known.items():
            object.__setattr__(site, "tap", taps[i])
    if not found:
        raise ValueError(
            f"{type(inner(net)).__name__} has no attention that x goes through: see sf.hub.taps.with_sites"
        )
    cross = {name: size for name, (kind, size) in found.items() if kind == "cross"}
    return cross or {name: size for name, (_, size) in found.items()}
