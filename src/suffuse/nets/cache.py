"""Feature caching: most of a network's work changes slowly along a run, so some of it may be kept between steps.

A transformer or MLP is cut after its first block, a U-Net below its finest level. Behind the cut lies the deep part,
with feature F(x, t): what the later blocks add to h, or what the U-Net brings back up. All before it always runs.

    every = N         F is computed at every N-th evaluation; between, it is the last one (order 0), or the polynomial
                      through the last order + 1, in u = logsnr(t) kept within +-10:
                      F(u) = sum_j F(u_j) prod_{i != j} (u - u_i) / (u_j - u_i)
    threshold = d     F is computed for the rows with |r - r'| >= d |r'|, where r is what the first block adds to h, r'
                      what it added when the row's F was last computed, and |.| is the mean of absolute values

Ma et al. 2024 (DeepCache) for U-Nets; Liu et al. 2025 (TaylorSeer), whose Taylor series with backward differences for
derivatives is this polynomial at order 1 and misses it at order 2, and runs in the number of the step; "first block
cache" (ParaAttention, 2024), which decides for a whole batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from suffuse.denoise import Composed, call, networks
from suffuse.nets.dit import DiT
from suffuse.nets.mlp import MLP
from suffuse.nets.unet import UNet
from suffuse.parameterize import Prediction
from suffuse.schedules import Schedule, left

__all__ = ["Cached", "Cost", "cached"]


@dataclass
class Cost:
    """How much of the deep part a run computed, counted in rows of its evaluations."""

    asked: int = 0
    made: int = 0

    @property
    def share(self) -> float:
        """Evaluations of the deep part that were made, of those an uncached run makes; 1 before any."""
        return self.made / self.asked if self.asked else 1.0


class Cached(Composed):
    """What `cached` returns: a denoiser with the cost of its last run."""

    @property
    def cost(self) -> Cost:
        """Of the run begun last, so far."""
        return self._rest["extra"]["cost"]


def cached(
    part: Any,
    *,
    every: int | None = None,
    order: int = 0,
    threshold: float | None = None,
    blocks: Sequence[nn.Module] | None = None,
) -> Cached:
    """Spare the deep part of a denoiser's networks at some evaluations of a run.

    Put it outermost, as in cached(guide(pos, neg, w)): one evaluation may call a network several times, and what each
    call leaves is kept for the same call of the next evaluation. The networks are cut only while they are asked, and
    left as they were. Outside `sample` and `run`, which begin anew, call `.fresh()` first. With `grad` off the features
    kept are constants; with it on, gradients flow through them.

    Args:
        part: a denoiser around UNet, DiT or MLP, or made of such.
        every: evaluations from one full one to the next, 1 is off.
        order: of the forecast between them, 0 (reuse), 1 or 2; less while there are fewer to go by. With `every` only.
        threshold: relative change of the first block that a row may see before its deep part is computed anew; 0 is
            off. One wait for the device an evaluation; of the blocks' arguments, a tensor with as many rows as h is
            taken to be kept by row.
        blocks: the blocks of another network in order of call, each `block(h, ...)` -> a tensor like h.
    Returns:
        A denoiser with `.cost`, the share of deep evaluations its last run made. The number of evaluations, and so
        a plan's nfe, is unchanged.
    Raises:
        ValueError: neither or both of `every` and `threshold`, or one out of range; no network that can be cut.
    """
    if (every is None) == (threshold is None):
        raise ValueError("say when to compute: every=3 evaluations, or at a threshold=0.1 of change (one of the two)")
    if every is not None and every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if threshold is not None and not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold must be a finite number of at least 0, got {threshold}")
    if order not in (0, 1, 2) or (order and every is None):
        raise ValueError(f"order must be 0, 1 or 2, and above 0 needs every=, got order={order}")
    cuts = [_cut_blocks(blocks)] if blocks is not None else _cuts(part)
    if not cuts:
        raise ValueError(f"{part!r} has no UNet, DiT or MLP to cut: pass the blocks of its network, in order of call")
    cost = Cost()
    settings = {"every": every, "order": order or None, "threshold": threshold}
    return Cached(
        _cached,
        [part],
        name="cached",
        settings={k: v for k, v in settings.items() if v is not None},
        rows={},
        extra={"cost": cost},
        state=lambda: _Run(cuts, every, order, threshold, cost),
        schedule=part.schedule,
    )


def _cached(x: Tensor, t: Any, to: Any, part: Any, *, state: _Run, cost: Cost) -> Prediction:
    with state.evaluation(x, _clock(part.schedule, t) if state.order else None):
        return call(part, x, t, to)


def _clock(schedule: Schedule, t: Any) -> Any:
    """u, by row where t is."""
    u = schedule.logsnr(t)
    if isinstance(u, Tensor):
        if u.ndim > 1:
            raise ValueError(f"a forecast takes one time a row, () or (B,), got {tuple(u.shape)}: use order=0")
        return u.double().clamp(-10, 10)
    return min(max(u, -10.0), 10.0)


class _Cut(NamedTuple):
    """Where a network is cut: (module, method), the method taking h first and returning the new h."""

    first: tuple[nn.Module, str]
    deep: list[tuple[nn.Module, str]]
    adds: bool  # F is what the deep part adds to h, instead of what it returns


def _cut_blocks(blocks: Sequence[nn.Module]) -> _Cut:
    if len(blocks) < 2:
        raise ValueError(f"a network of one block has nothing to cache: it needs two or more, got {len(blocks)}")
    return _Cut((blocks[0], "forward"), [(block, "forward") for block in list(blocks)[1:]], adds=True)


def _cuts(part: Any) -> list[_Cut]:
    """A cut for every network of ours in a denoiser, each once, also inside other modules."""
    found: dict[nn.Module, None] = dict.fromkeys(m for net in networks(part) for m in net.modules())
    cuts = []
    for net in found:
        if isinstance(net, UNet):
            cuts.append(_Cut((net.down[0], "forward"), [(net, "deep")], adds=False))
        elif isinstance(net, DiT) and net.skips:
            raise ValueError(
                "a DiT with skips has no deep part that its first block comes before: build it without skips"
            )
        elif isinstance(net, DiT | MLP):
            cuts.append(_cut_blocks(list(net.blocks)))
    return cuts


@dataclass
class _Slot:
    """What one call of a network left for the same call in later evaluations."""

    last: int  # evaluation it was last asked in
    since: int = 0  # evaluations since the last full one
    change: Tensor | None = None  # r', (B, ...)
    nodes: list[tuple[Any, Tensor]] = field(default_factory=list)  # (u, F), the newest first
    h: Tensor | None = None  # where the deep part begins, in the call going on
    rows: Tensor | bool = True  # whose F is computed in it: all, none, or indices


class _Run:
    """What one run keeps, and what it does when a network comes by a cut."""

    def __init__(self, cuts: list[_Cut], every: int | None, order: int, threshold: float | None, cost: Cost) -> None:
        self.cuts, self.every, self.order, self.threshold, self.cost = cuts, every, order, threshold, cost
        self.slots: dict[tuple[int, int], _Slot] = {}
        self.calls: list[int] = []
        self.number, self.batch = 0, 0
        self.u: Any = None
        self.grad = False

    def rows(self, index: Any) -> _Run:
        """The run of some rows: features of a larger batch (guidance) are forgotten, for their order is not known."""
        new = _Run(self.cuts, self.every, self.order, self.threshold, self.cost)
        new.number, new.batch = self.number, self.batch
        for key, slot in self.slots.items():
            if slot.nodes and len(slot.nodes[0][1]) == self.batch:
                nodes = [(_take(u, index), _take(f, index)) for u, f in slot.nodes]
                new.slots[key] = _Slot(slot.last, slot.since, _take(slot.change, index), nodes)
                new.batch = len(nodes[0][1])
        return new

    @contextmanager
    def evaluation(self, x: Tensor, u: Any) -> Iterator[None]:
        """Inside, the networks are cut."""
        if self.number == 0:
            self.cost.asked = self.cost.made = 0
        self.number += 1
        self.u, self.batch, self.grad = u, len(x), torch.is_grad_enabled()
        self.calls = [0] * len(self.cuts)
        undo = []
        try:
            for i, cut in enumerate(self.cuts):
                for j, (module, name) in enumerate([cut.first, *cut.deep]):
                    method, before = getattr(module, name), module.__dict__.get(name)
                    undo.append((module, name, before))
                    # Past Module.__setattr__, and found before the class's own method.
                    object.__setattr__(module, name, self._enter(i, method) if j == 0 else self._pass(i, j, method))
            yield
        except BaseException:
            self.slots.clear()  # half an evaluation is no past to go on from
            raise
        finally:
            for module, name, before in reversed(undo):
                if before is None:
                    object.__delattr__(module, name)
                else:
                    object.__setattr__(module, name, before)

    def _enter(self, i: int, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The first block, which decides."""

        def first(*given: Any, **named: Any) -> Tensor:
            out = method(*given, **named)
            if not given or not isinstance(out, Tensor):
                seen = f"block(h, ...) -> {type(out).__name__}" if given else f"block({', '.join(named)}=...)"
                raise TypeError(f"a block to cache must be called as block(h, ...) and return a tensor, this is {seen}")
            h = given[0]
            key = i, self.calls[i]
            slot = self.slots.get(key)
            rows = len(out)
            if slot is None or slot.last < self.number - 1 or not slot.nodes or len(slot.nodes[0][1]) != rows:
                slot = self.slots[key] = _Slot(self.number)
            slot.last, slot.h = self.number, None
            slot.rows = self._needed(slot, out - h if out.shape == h.shape else out)
            self.cost.asked += rows
            self.cost.made += len(slot.rows) if isinstance(slot.rows, Tensor) else rows * slot.rows
            return out

        return first

    def _needed(self, slot: _Slot, r: Tensor) -> Tensor | bool:
        """The rows whose deep part is computed now."""
        if self.threshold is None:
            assert self.every is not None
            slot.since += 1
            if slot.nodes and slot.since < self.every:
                return False
            slot.since = 0
            return True
        r = r.detach()
        if slot.change is None:
            slot.change = r
            return True
        old = slot.change
        rows = (~(_size(r - old) < self.threshold * _size(old))).nonzero()[:, 0]  # also where it is not a number
        if len(rows) == 0:
            return False
        slot.change = r if len(rows) == len(r) else old.index_copy(0, rows, r[rows])
        return len(rows) == len(r) or rows

    def _pass(self, i: int, j: int, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """One of the methods of the deep part: all of it, some rows or nothing; the last one knows F."""
        last = j == len(self.cuts[i].deep)

        def deep(h: Tensor, *rest: Any, **named: Any) -> Tensor:
            slot = self.slots[i, self.calls[i]]
            slot.h = h if slot.h is None else slot.h
            self.calls[i] += last
            rows = slot.rows
            if isinstance(rows, Tensor):
                b = len(h)

                def pick(v: Any) -> Any:
                    return v[rows] if isinstance(v, Tensor) and v.ndim and len(v) == b else v

                out = method(h[rows], *tree_map(pick, rest), **tree_map(pick, named))
                return self._some(i, slot, rows, out) if last else h.index_copy(0, rows, out)
            if rows:
                out = method(h, *rest, **named)
                if last:
                    self._keep(slot, out - slot.h if self.cuts[i].adds else out)
                return out
            return self._forecast(i, slot) if last else h

        return deep

    def _some(self, i: int, slot: _Slot, rows: Tensor, out: Tensor) -> Tensor:
        """Some rows were computed, the others are what they were."""
        assert slot.h is not None
        old = slot.nodes[0][1]
        new = out - slot.h[rows] if self.cuts[i].adds else out
        slot.nodes = [(None, old.index_copy(0, rows, new if self.grad else new.detach()))]
        return self._forecast(i, slot).index_copy(0, rows, out)

    def _keep(self, slot: _Slot, f: Tensor) -> None:
        again = bool(slot.nodes) and self.order > 0 and _meet(slot.nodes[0][0], self.u)
        slot.nodes = [(self.u, f if self.grad else f.detach()), *slot.nodes[again:]][: self.order + 1]

    def _forecast(self, i: int, slot: _Slot) -> Tensor:
        """F now, from what is kept, brought to where h is."""
        f = slot.nodes[0][1]
        if len(slot.nodes) > 1:
            f = sum((_weight(self.u, j, slot.nodes) * f for j, (_, f) in enumerate(slot.nodes)), torch.zeros_like(f))
        assert slot.h is not None
        return slot.h + f if self.cuts[i].adds else f


def _weight(u: Any, j: int, nodes: list[tuple[Any, Tensor]]) -> Any:
    """prod_{i != j} (u - u_i) / (u_j - u_i), a number or one a row."""
    uj, f = nodes[j]
    weight = math.prod((u - ui) / (uj - ui) for i, (ui, _) in enumerate(nodes) if i != j)
    if not isinstance(weight, Tensor):
        return weight
    if weight.ndim:  # the rows of a guided batch are the batch, repeated
        weight = weight.repeat(len(f) // len(weight))
    return left(weight, f)


def _size(r: Tensor) -> Tensor:
    return r.abs().flatten(1).mean(1)


def _meet(a: Any, b: Any) -> bool:
    """Whether two times are the same, in any row."""
    return bool(torch.as_tensor(a == b).any())


def _take(value: Any, index: Any) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value[index.to(value.device) if isinstance(index, Tensor) else index]
