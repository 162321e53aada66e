"""What went wrong in a step that is not finite: the rows, their noise levels, and the layer where it began.

The step is repeated, which is exact, with hooks that look at every layer; a run that goes well pays nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.training.backward import Backward

__all__ = ["NotFiniteError", "diagnose"]


class NotFiniteError(ValueError):
    """The loss or its gradient became infinite or not a number; training stopped before that step was taken."""


def diagnose(backward: Backward, model: Any, batch: dict[str, Tensor], losses: list[Tensor], step: int) -> str:
    """One sentence: which step, which rows, at which noise levels, from which layer, and what to do."""
    bad = [~part.isfinite() for part in losses]
    count, total = sum(int(b.sum()) for b in bad), sum(len(b) for b in bad)
    net = model if isinstance(model, nn.Module) else model.net
    if count:
        part = next(i for i, b in enumerate(bad) if bool(b.any()))
        message = f"the loss is not finite at step {step}, in {count} of {total} rows"
        with _times(model) as (watched, times), _values(net) as began, torch.no_grad():
            backward.losses(watched, batch, step, part)
        if times and isinstance(times[0], Tensor) and times[0].shape == bad[part].shape:
            t = times[0][bad[part]]
            message += f", at noise levels t = {t.min().item():.3g} to {t.max().item():.3g}"
        message += f", first in what {began[0]} answered" if began else ", in the loss: the network's answer is finite"
    else:
        message = f"the gradient is not finite at step {step}, though the loss is"
        with _gradients(net) as began:
            net.zero_grad(set_to_none=True)
            backward(model, batch, step)
        net.zero_grad(set_to_none=True)
        message += f", first {began[0]}" if began else ""
    rows = [name for name, value in batch.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if rows:
        return f"{message}: the data has values that are not finite in {rows[0]!r}"
    return f"{message}: try a lower learning rate, or precision='float32'"


@contextmanager
def _times(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The model, and the times it is asked about."""
    seen: list[Any] = []
    if not isinstance(model, Denoiser):
        yield model, seen
        return
    watched, output = copy.copy(model), model._output

    def watch(x: Tensor, t: Any, told: dict[str, Tensor]) -> Any:
        seen.append(t)
        return output(x, t, told)

    watched._output = watch  # type: ignore[method-assign]
    yield watched, seen


@contextmanager
def _values(net: nn.Module) -> Iterator[list[str]]:
    """Layers whose answer was not finite, in the order in which they answered."""
    began: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, out: Any) -> None:
            if not all(bool(value.isfinite().all()) for value in _tensors(out)):
                weights = [n for n, p in module.named_parameters(recurse=False) if not bool(p.isfinite().all())]
                began.append(f"{_called(name, module)}" + (f" (its {weights[0]} is not finite)" if weights else ""))

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in net.named_modules()]
    try:
        yield began
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _gradients(net: nn.Module) -> Iterator[list[str]]:
    """Where gradients were not finite, in the order in which they were made: from the loss back to the input."""
    began: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: Any, out: Any) -> None:
            for which, values in (("came to", _tensors(out)), ("left", _tensors(args))):
                for value in values:
                    if value.requires_grad:
                        value.register_hook(seen(f"in the gradient that {which} {_called(name, module)}"))

        return look

    def seen(text: str) -> Any:
        def look(gradient: Tensor) -> None:
            if not bool(gradient.isfinite().all()):
                began.append(text)

        return look

    leaves = [(name, module) for name, module in net.named_modules() if not any(module.children()) or module is net]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield began
    finally:
        for handle in handles:
            handle.remove()


def _called(name: str, module: nn.Module) -> str:
    return f"the layer {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
