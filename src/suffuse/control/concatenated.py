"""A picture concatenated to x: further input channels of a network's first layer, whose weights begin at zero.

stem([x, picture]) = stem(x) + W picture,    W of the stem's own kernel

Saharia et al. 2022 (Palette), section 3; Brooks et al. 2023 (InstructPix2Pix), section 3.2, for the zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from suffuse.control.features import flat
from suffuse.control.route import Route
from suffuse.control.steered import Added, Control, attached
from suffuse.denoise import Denoiser
from suffuse.nets.attention import zero

__all__ = ["Concatenated", "concatenated"]


class Concatenated(Control):
    """See above.

    Args:
        net, path, channels, factor: as for `Control`. own: as for `concatenated`.
    """

    kind = "concatenated"

    def __init__(self, net: nn.Module, path: Route, channels: int, factor: int, own: bool) -> None:
        super().__init__(path, channels, factor)
        self.arguments["own"] = own
        stem: Any = net.get_submodule(path.stem)
        dims, shape = len(path.spatial), path.shapes[path.stem][0]
        shrink = factor * path.shrink
        width = path.width(shape)
        if factor == 1 and hasattr(stem, "kernel_size"):
            self.weights = getattr(nn, f"Conv{dims}d")(
                channels, width, stem.kernel_size, stem.stride, stem.padding, stem.dilation, bias=False
            )
        else:  # a stem that cuts patches first, or latents
            self.weights = getattr(nn, f"Conv{dims}d")(channels, width, shrink, shrink, bias=False)
        zero(self.weights)

    def added(self, x: Tensor, t: Tensor, told: Mapping[str, Any], picture: Tensor) -> tuple[Added, Added]:
        shape, more = self.route.shapes[self.route.stem][0], self.weights(picture)
        return {self.route.stem: {0: flat(self.route, shape, more)}}, {}


def concatenated(
    model: Denoiser, channels: int = 1, *, name: str = "image", x: Tensor | None = None, own: bool = True
) -> Denoiser:
    """A model whose first layer also sees a picture; fresh, it is the model bit for bit.

    Args:
        model, channels, name, x: as for `controlnet`.
        own: the whole network is trained, on a copy of its weights; else only the new channels are.
    """
    return attached(model, x, name, lambda net, path, factor: Concatenated(net, path, channels, factor, own), own=own)
