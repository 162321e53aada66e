"""T2I-Adapter: features of a picture alone, once for every resolution, added on a network's way down.

h_i <- h_i + strength Z_i(f_i),   f_i = residual(shrink(f_(i-1))),   f_0 an encoding of the picture

It is small, and runs without x and t. In a chain of blocks every block of the first half gets one.

Mou et al. 2023, eq. 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any

from torch import Tensor, nn

from suffuse.control.features import HintEncoder, Residual, conv, flat, join
from suffuse.control.route import Route
from suffuse.control.steered import Added, Control, attached
from suffuse.denoise import Denoiser

__all__ = ["T2IAdapter", "t2i_adapter"]


class T2IAdapter(Control):
    """See above.

    Args:
        path, channels, factor: as for `Control`. width: of the features.
    """

    kind = "t2i"

    def __init__(self, path: Route, channels: int, factor: int, width: int) -> None:
        super().__init__(path, channels, factor)
        self.arguments["width"] = width
        dims = len(path.spatial)
        self.hint = HintEncoder(dims, channels, width, factor * path.shrink)
        self.stations = _stations(path)
        self.levels, self.joins = nn.ModuleList(), nn.ModuleList()
        before = path.positions(path.shapes[path.stem][0])
        for step in self.stations:
            shape = path.shapes[step][path.main(step)]
            size = path.positions(shape)
            layers = [conv(dims, width, width, 3, 2) for _ in range(round(log2(before / size) / dims))]
            self.levels.append(nn.Sequential(*layers, Residual(dims, width)))
            self.joins.append(join(path, shape, width))
            before = size

    def added(self, x: Tensor, t: Tensor, told: Mapping[str, Any], picture: Tensor) -> tuple[Added, Added]:
        f = self.hint(picture)
        found: Added = {}
        for step, level, z in zip(self.stations, self.levels, self.joins, strict=True):
            f, i = level(f), self.route.main(step)
            found[step] = {i: z(flat(self.route, self.route.shapes[step][i], f))}
        return found, {}


def _stations(path: Route) -> list[str]:
    """Of a U-Net the last step at each resolution, of a chain every step."""
    if not path.skips:
        return list(path.steps)
    last = {path.shapes[step][path.main(step)][1:]: step for step in path.steps}
    return list(last.values())


def t2i_adapter(
    model: Denoiser, channels: int = 1, *, width: int = 64, name: str = "adapter", x: Tensor | None = None
) -> Denoiser:
    """A model that can also be told a picture, by a small network; fresh, it is the model bit for bit.

    Args:
        model, channels, name, x: as for `controlnet`. width: of the features.
    """
    return attached(model, x, name, lambda net, path, factor: T2IAdapter(path, channels, factor, width))
