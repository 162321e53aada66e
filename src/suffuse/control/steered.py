"""A network with controls: what each adds to the answers of its steps, for as long as it runs.

h_i <- h_i + sum over controls of strength_c c_i
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.adapters.places import copied
from suffuse.control.picture import Picture, clock, weight
from suffuse.control.route import Route, replaced, route, tensors
from suffuse.denoise import Denoiser

__all__ = ["Control", "Steered", "asked", "attached", "inner"]

Added = dict[str, dict[int, Tensor]]
"""By step, then by the number of the tensor in its answer: what is added to it."""


class Control(nn.Module):
    """What steers a network; subclasses say how.

    Args:
        path: which way x takes through the network. channels: of the picture. factor: its points for one of x.
    Attributes:
        arguments: what makes the same one again, besides the network.
        learned: names of all that was trained when it was attached, in it and in the network.
    """

    kind = ""

    def __init__(self, path: Route, channels: int, factor: int) -> None:
        super().__init__()
        self.route, self.channels, self.factor = path, channels, factor
        self.arguments: dict[str, Any] = {"channels": channels, "factor": factor}
        self.learned: frozenset[str] = frozenset()

    def condition(self, tell: Callable[[float], Any]) -> Picture:
        """What the network is told under the control's name."""
        return Picture(self.channels, len(self.route.spatial), self.factor, tell)

    def added(self, x: Tensor, t: Tensor, told: Mapping[str, Any], picture: Tensor) -> tuple[Added, Added]:
        """What is added to the answers of steps: what later steps see too, and what only the second half sees."""
        return {}, {}

    @contextmanager
    def within(self, net: nn.Module, picture: Tensor, strength: Tensor) -> Iterator[None]:
        """What else is changed while the network runs."""
        yield


class Steered(nn.Module):
    """A network with controls by name. Told no picture, or outside all intervals, it runs as if there were none."""

    def __init__(self, net: nn.Module, conditions: Mapping[str, Any]) -> None:
        super().__init__()
        self.net, self.controls = net, nn.ModuleDict()
        self.conditions: dict[str, Any] = dict(conditions)

    def forward(self, x: Tensor, t: Tensor, **told: Any) -> Tensor:
        hints = {name: told.pop(name) for name in self.controls}
        seen: Added = {}
        kept: Added = {}
        with ExitStack() as stack:
            for name, control in self.controls.items():
                picture, strength = hints[name]["picture"], weight(hints[name], t)
                if not bool(strength.any()):
                    continue
                self.conditions[name].fits(name, picture, x)
                picture = picture.nan_to_num(0.0)
                stack.enter_context(control.within(self.net, picture, strength))  # type: ignore[operator]
                for total, more in zip((seen, kept), control.added(x, t, told, picture), strict=True):  # type: ignore[operator]
                    _sum(total, more, strength)
            if seen or kept:
                routes = [c.route for c in self.controls.values()]
                stack.enter_context(_joined(self.net, seen, kept, {s for r in routes for s in r.steps}))  # type: ignore[union-attr]
            return self.net(x, t, **told)


def _sum(total: Added, more: Added, strength: Tensor) -> None:
    for step, parts in more.items():
        for i, part in parts.items():
            part = strength.to(part).view(-1, *[1] * (part.ndim - 1)) * part
            mine = total.setdefault(step, {})
            mine[i] = mine[i] + part if i in mine else part


@contextmanager
def _joined(net: nn.Module, seen: Added, kept: Added, steps: set[str]) -> Iterator[None]:
    """While inside, steps answer with what is added; other steps get back the answers without what is `kept`."""
    plain: dict[int, Tensor] = {}
    alive: list[Tensor] = []  # while it is, no other tensor gets its id

    def after(step: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, out: Any) -> Any:
            for extra, hides in ((seen.get(step), False), (kept.get(step), True)):
                if extra:
                    own = [v for v in tensors(out) if v.ndim > 1]
                    new = {id(v): v + extra[i].to(v.dtype) for i, v in enumerate(own) if i in extra}
                    if hides:
                        plain.update({id(new[id(v)]): v for v in own if id(v) in new})
                    alive.extend([*own, *new.values()])
                    out = replaced(out, new)
            return out

        return hook

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return replaced(args, plain), replaced(kwargs, plain)

    handles = [net.get_submodule(s).register_forward_hook(after(s)) for s in {*seen, *kept}]
    if kept:
        handles += [net.get_submodule(s).register_forward_pre_hook(before, with_kwargs=True) for s in steps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inner(net: nn.Module) -> nn.Module:
    """The network without its controls."""
    return net.net if isinstance(net, Steered) else net


def asked(model: Denoiser, net: nn.Module, x: Tensor) -> None:
    """Run the network without its controls as the model would at t = 0.5."""
    plain, controls = copy.copy(model), getattr(model.net, "controls", {})
    plain.net = net
    plain.conditions = {k: v for k, v in model.conditions.items() if k not in controls}
    plain.bound = {k: _first(v) for k, v in model.bound.items() if k in plain.conditions}
    plain.output(x + 0, 0.5)


def _first(value: Any) -> Any:
    return {k: v[:1] for k, v in value.items()} if isinstance(value, dict) else value[:1]


def attached(
    model: Denoiser,
    x: Tensor | None,
    name: str,
    build: Callable[[nn.Module, Route, int], Control],
    *,
    own: bool = False,
) -> Denoiser:
    """A model with one more control.

    Args:
        model: a `Denoiser` around a module; it shares its weights with what is returned, and stays as it is.
        x: an example of what it denoises, by default zeros of `model.shape`; needed where that is not known.
        name: of the condition. build: (net, route, factor) -> control.
        own: the network itself gets weights of its own, and all are trained.
    Raises:
        TypeError: the model is guided already, or no module.
        ValueError: the name is taken; the shape of x is not known.
    """
    if not isinstance(model, Denoiser) or not isinstance(model.net, nn.Module):
        raise TypeError(f"a control is attached to a Denoiser around a module, before it is guided; got {model!r}")
    if not name.isidentifier() or name in model.conditions:
        has = ", ".join(model.conditions) or "none"
        raise ValueError(f"a control's name must be a new identifier, got {name!r}; the conditions are {has}")
    if x is None and not model.shape:
        raise ValueError("the shape of x is not known: pass an example of what the model denoises, x=(1, C, *spatial)")
    example = torch.zeros(1, *model.shape or ()) if x is None else x[:1]
    weight_ = next((p for p in model.net.parameters() if p.is_floating_point()), example)
    example = example.to(weight_.device, torch.float32)
    net = copied(model.net)
    steered = net if isinstance(net, Steered) else Steered(net, model.conditions)
    if own:
        steered.net = copied(steered.net, own=True)
    frozen = copied(steered.net) if own else steered.net
    factor = getattr(model.codec, "factor", 1) if model.codec is not None else 1
    control = build(steered.net, route(frozen, lambda net, x: asked(model, net, x), example), int(factor)).to(weight_)
    steered.controls[name] = control
    control.learned = frozenset(path for path, p in steered.named_parameters() if p.requires_grad)
    new = copy.copy(model)
    new.net, new.conditions = steered, {**model.conditions, name: control.condition(clock(model))}
    steered.conditions = dict(new.conditions)
    return new
