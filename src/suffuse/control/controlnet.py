"""ControlNet: a trained copy of a network's first half, which also sees a picture, beside the frozen network.

h_i <- h_i + strength Z_i(copy_i(stem(x) + Z_0(picture), t, text)),       every Z a linear layer that begins at zero

In a U-Net the sum is what the second half sees, and the first half goes on without it; in a chain of blocks (DiT,
MMDiT, Flux) the next block sees it.

Zhang et al. 2023 (Adding conditional control), eq. 2 and figure 3; Chen et al. 2024 (PixArt-delta) for chains.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from suffuse.control.features import HintEncoder, join
from suffuse.control.route import Route, replaced, tensors
from suffuse.control.steered import Added, Control, attached
from suffuse.denoise import Denoiser
from suffuse.nets.attention import zero

__all__ = ["ControlNet", "controlnet"]


class _Done(Exception):
    """The last step of the copy has answered."""


class ControlNet(Control):
    """See above.

    Args:
        net: frozen; its weights are shared where they are not copied.
        path, channels, factor: as for `Control`.
    """

    kind = "controlnet"

    def __init__(self, net: nn.Module, path: Route, channels: int, factor: int) -> None:
        super().__init__(path, channels, factor)
        names = (path.stem, *path.steps)
        trained = {id(p) for name in names for p in net.get_submodule(name).parameters()}
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().clone()) if id(p) in trained else p for p in net.parameters()
        }
        for module in net.modules():
            if "conditions" in vars(module):
                memo[id(vars(module)["conditions"])] = vars(module)["conditions"]
        self.copy = copy.deepcopy(net, memo)
        width = path.width(path.shapes[path.stem][0])
        self.hint = HintEncoder(len(path.spatial), channels, width, factor * path.shrink)
        self.enter = zero(nn.Linear(width, width))
        where = names if path.skips else path.steps
        self.joins = nn.ModuleDict(
            {name.replace(".", "/"): nn.ModuleList(join(path, s) for s in path.shapes[name]) for name in where}
        )

    def added(self, x: Tensor, t: Tensor, told: Mapping[str, Any], picture: Tensor) -> tuple[Added, Added]:
        hint = self.enter(self.hint(picture).flatten(2).mT)
        answers: dict[str, list[Tensor]] = {}
        path, last = self.route, self.route.steps[-1]

        def begin(module: nn.Module, args: Any, out: Any) -> Any:
            first = tensors(out)[0]
            more = hint if path.is_tokens(path.shapes[path.stem][0]) else hint.mT.reshape(first.shape)
            out = replaced(out, {id(first): first + more.to(first.dtype)})
            answers[path.stem] = tensors(out)
            return out

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                answers[name] = [v for v in tensors(out) if v.ndim > 1]
                if name == last:
                    raise _Done

            return hook

        handles = [self.copy.get_submodule(path.stem).register_forward_hook(begin)]
        handles += [self.copy.get_submodule(n).register_forward_hook(note(n)) for n in path.steps]
        try:
            self.copy(x, t, **told)
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()
        found: Added = {}
        for key, joins in self.joins.items():
            name = key.replace("/", ".")
            found[name] = {i: z(v) for i, (z, v) in enumerate(zip(joins, answers[name], strict=True))}  # type: ignore[arg-type]
        return ({}, found) if path.skips else (found, {})


def controlnet(model: Denoiser, channels: int = 1, *, name: str = "control", x: Tensor | None = None) -> Denoiser:
    """A model that can also be told a picture, which says where things are; fresh, it is the model bit for bit.

    Args:
        model: a `Denoiser` around any module; it shares its weights with what is returned, and stays as it is.
            Several controls are several calls; the last one is trained.
        channels: of the picture, whose size is that of the data (for latents, of what they are decoded to).
        name: of the condition: `given(control=picture)`, or `Hint(picture, strength, between=...)`.
        x: an example of what the model denoises, by default zeros of `model.shape`.
    Raises:
        TypeError, ValueError: as for `attached`; a network without steps.
    """
    return attached(model, x, name, lambda net, path, factor: ControlNet(net, path, channels, factor))
