"""Which way x takes through a network, found by running it once and watching: the stem, and the steps after it.

A *step* is a member of a list of modules, or a module beside such lists, whose answer depends on x. The *stem* is the
first one. If what an older step answered is used once more later on, the network is a U-Net, and its first half are the
steps before that; otherwise it is a chain, and its first half are the first half of the blocks in its lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from suffuse.random import noise

__all__ = ["Route", "replaced", "route", "tensors"]


@dataclass(frozen=True)
class Route:
    """Where a control can reach a network.

    Attributes:
        stem: name of the first step. steps: names of the first half, without the stem.
        shapes: by name, of every tensor that a step answers, without its rows.
        skips: whether it is a U-Net, whose second half looks at what the first half answered.
        channels, spatial: of x.
    """

    stem: str
    steps: tuple[str, ...]
    shapes: dict[str, list[tuple[int, ...]]]
    skips: bool
    channels: int
    spatial: tuple[int, ...]

    @property
    def shrink(self) -> int:
        """Points of x along each axis for one position of the stem."""
        n = prod(self.spatial) / self.positions(self.shapes[self.stem][0])
        return round(n ** (1 / len(self.spatial)))

    def is_tokens(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is a sequence (L, width) instead of an image (width, *spatial)."""
        if len(self.spatial) > 1:
            return len(shape) == 2
        width = self.shapes[self.stem][0][0]  # here both have one rank: in a chain, a sequence has the width last
        return not self.skips and shape[-1] == width and shape[0] != width

    def width(self, shape: tuple[int, ...]) -> int:
        """Channels of a tensor."""
        return shape[-1] if self.is_tokens(shape) else shape[0]

    def positions(self, shape: tuple[int, ...]) -> int:
        """Positions of a tensor."""
        return shape[0] if self.is_tokens(shape) else prod(shape[1:])

    def main(self, step: str) -> int:
        """Which of the tensors that a step answers is the picture, beside text."""
        shapes = self.shapes[step]
        want = self.positions(self.shapes[self.stem][0])
        images = [i for i, s in enumerate(shapes) if not self.is_tokens(s)]
        return images[0] if images else next((i for i, s in enumerate(shapes) if s[0] == want), len(shapes) - 1)


def tensors(out: Any) -> list[Tensor]:
    """The tensors in an answer, each once."""
    found: dict[int, Tensor] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            found.setdefault(id(value), value)
        elif isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                walk(inner)

    walk(out)
    return list(found.values())


def replaced(out: Any, new: dict[int, Tensor]) -> Any:
    """An answer with some of its tensors, known by id, in place of others."""
    if isinstance(out, Tensor):
        return new.get(id(out), out)
    if isinstance(out, dict):
        values = {k: replaced(v, new) for k, v in out.items()}
        return type(out)(**values) if type(out) is not dict else values
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return type(out)(*(replaced(v, new) for v in out))
    if isinstance(out, (list, tuple)):
        return type(out)(replaced(v, new) for v in out)
    return out


class _Watch(TorchFunctionMode):
    """Notes when a tensor that a module answered is used, by how many modules had answered before."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[tuple[str, Any, list[Tensor]]] = []
        self.uses: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(v.requires_grad for v in tensors(out)):
            self.uses += [(len(self.answers), id(v)) for v in tensors(args)]
        return out


def route(net: nn.Module, run: Callable[[nn.Module, Tensor], Any], x: Tensor) -> Route:
    """Run a network once and say where a control can reach it.

    Args:
        net: its weights need no gradient here. run: asks it, (net, x). x: gives the shape (B, C, *spatial).
    Raises:
        ValueError: no steps are found.
    """
    watch, handles, seen = _Watch(), [], []
    example = noise(tuple(x.shape), seed=0, device=x.device).to(x.dtype).requires_grad_(True)
    handles.append(net.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
    for name, module in net.named_modules():
        if name:
            handles.append(module.register_forward_hook(_note(watch, name)))
    training = net.training
    net.eval()
    try:
        with torch.enable_grad(), watch:
            run(net, example)
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    answered = {name: out for name, _, out in reversed(watch.answers)}  # the first answer of each counts
    root, steps = "", []
    while True:
        steps = [name for name in _children(net, root) if name in answered and not _passes(answered[name], seen[0])]
        if len(steps) != 1 or not list(_children(net, steps[0])):
            break
        root = steps[0]
    when = {name: i for i, (name, _, _) in reversed(list(enumerate(watch.answers)))}
    steps.sort(key=lambda name: when[name])
    if len(steps) < 2:
        raise ValueError(f"{type(net).__name__} has no steps that x goes through one after the other: found {steps}")
    first = _first_skip(steps, when, answered, watch.uses)
    after = steps[1:]
    if first is not None:
        half = [name for name in after if when[name] < first]
    else:
        blocks = [
            n for n in after if isinstance(net.get_submodule(n.rpartition(".")[0]), (nn.ModuleList, nn.Sequential))
        ]
        blocks = blocks or after
        half = blocks[: max(1, len(blocks) // 2)]
    shapes = {name: [tuple(v.shape[1:]) for v in answered[name]] for name in (steps[0], *half)}
    return Route(steps[0], tuple(half), shapes, first is not None, x.shape[1], tuple(x.shape[2:]))


def _note(watch: _Watch, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        found = [v for v in tensors(out) if v.requires_grad and v.ndim > 1]
        if found:
            watch.answers.append((name, module, found))

    return hook


def _children(net: nn.Module, root: str) -> Iterator[str]:
    """Names of a module's parts; of a list its members. A sequence is a list where it stands alone."""
    for name, child in net.get_submodule(root).named_children():
        path = f"{root}.{name}" if root else name
        if isinstance(child, nn.ModuleList):
            yield from (f"{path}.{inner}" for inner, _ in child.named_children())
        else:
            yield path


def _passes(answer: list[Tensor], x: Tensor) -> bool:
    """Whether this is x itself, perhaps with more channels."""
    first = answer[0]
    same = first.shape[2:] == x.shape[2:] and len(first) == len(x) and first.shape[1] >= x.shape[1]
    return same and first.dtype == x.dtype and torch.equal(first[:, : x.shape[1]], x)


def _first_skip(
    steps: list[str], when: dict[str, int], answered: dict[str, list[Tensor]], uses: list[tuple[int, int]]
) -> int | None:
    """When an answer is first used although a later step has answered since; None if never."""
    owner = {id(v): i for i, name in enumerate(steps) for v in answered[name]}
    done = sorted((when[name], i) for i, name in enumerate(steps))
    for time, value in sorted(uses):
        if value in owner:
            latest = max((i for at, i in done if at < time), default=-1)
            if latest > owner[value]:
                return time
    return None
