"""What diffusers imports to open a model that `sf.hub.to_diffusers` wrote; its model_index.json names this file.

output = eps of `model.on(table)` at t = (index + 1)/T, or v where the table ends in pure noise
"""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from suffuse.denoise import Denoiser
from suffuse.parameterize import named, v
from suffuse.schedules import Discrete, from_json
from suffuse.training.described import build

__all__ = ["ModelMixin", "Network"]


class Network(ModelMixin, ConfigMixin):
    """A network of suffuse as diffusers' pipelines call one: (x, index) -> eps.

    Args:
        net: what to build, {"type": name, "args": arguments}. schedule, predicts, variance: how it is read.
        table: the betas it is asked on. in_channels, sample_size: of one item.
    """

    @register_to_config
    def __init__(
        self,
        net: dict[str, Any],
        schedule: dict[str, Any],
        predicts: str,
        table: dict[str, Any],
        in_channels: int,
        sample_size: list[int],
        variance: str | None = None,
    ) -> None:
        super().__init__()
        self.network = build(net)  # not `net`, which is a key of the config
        self.read, self.table = (from_json(schedule), named(predicts), variance), Discrete(tuple(table["betas"]))

    def forward(
        self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """Answer as a UNet2DModel does; without class labels it is told nothing."""
        schedule, predicts, variance = self.read
        model = Denoiser(self.network, schedule, predicts, variance=variance)
        if class_labels is not None:
            model = model.given(label=class_labels)
        index = float(timestep) if getattr(timestep, "ndim", 0) == 0 else timestep
        p = model.on(self.table)(sample, (index + 1) / self.table.steps)
        ends = self.table(1.0)[0] == 0
        out = v.write(p.x0, p.eps, v.row(self.table, None, p.alpha, p.sigma)) if ends else p.eps
        return UNet2DOutput(sample=out) if return_dict else (out,)
