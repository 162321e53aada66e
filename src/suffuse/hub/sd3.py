"""Stable Diffusion 3 and 3.5: SD3Transformer2DModel, a flow, told text by two CLIPs and a T5 (which may be missing).

Esser et al. 2024, section 4 (their time shift, eq. 23, is `schedule.shift`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.denoise import Denoiser
from suffuse.hub.folder import Folder, require
from suffuse.hub.text import Encoder, Prompts, encoder

__all__ = ["SD3", "load"]

LENGTH = 256  # T5's tokens, as trained


class SD3(nn.Module):
    """(z, sigma, text) -> velocity, of the latents' shape."""

    def __init__(self, transformer: Any, conditions: dict[str, Any]) -> None:
        super().__init__()
        self.transformer, self.conditions = transformer, conditions

    def forward(self, x: Tensor, t: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=text["states"],
            pooled_projections=text["pooled"],
            return_dict=False,
        )[0]


def load(folder: Folder) -> Denoiser:
    """The denoiser of a saved Stable Diffusion 3; `text` is what it is told."""
    transformer, codec = folder.network("transformer", require("diffusers").SD3Transformer2DModel), folder.codec()
    has_t5 = folder.has("text_encoder_3")
    encoders = [encoder(folder, suffix, "CLIPTextModelWithProjection", cut=has_t5) for suffix in ("", "_2")]
    if has_t5:
        encoders.append(encoder(folder, "_3", "T5EncoderModel", length=LENGTH))
    width = transformer.config.joint_attention_dim

    def encode(name: str, prompts: Sequence[str], *encoders: Encoder) -> dict[str, Tensor]:
        a, b = (clip(name, prompts) for clip in encoders[:2])
        states = torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1)
        long = encoders[2](name, prompts)[0] if has_t5 else states.new_zeros(len(prompts), LENGTH, width)
        states = torch.cat([F.pad(states, (0, width - states.shape[-1])), long.to(states)], 1)
        return {"states": states, "pooled": torch.cat([a[0], b[0]], -1)}

    text = Prompts(encode, encoders)
    return folder.denoiser(SD3(transformer, {"text": text}), transformer.config, codec, patch=2)
