"""Stable Diffusion 1.x and 2.x: UNet2DConditionModel on the latents of AutoencoderKL, told text by CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from suffuse.hub.autoencoder import KLCodec
from suffuse.hub.folder import Folder, Pretrained, require, square
from suffuse.training.files import ModelFileError

__all__ = ["StableDiffusion", "Text", "load"]

_UNUSED = "addition_embed_type class_embed_type encoder_hid_dim_type num_class_embeds time_cond_proj_dim"


class Text:
    """Prompts as CLIP's last hidden states (rows, L, D), padded to L tokens; the null is the empty prompt.

    Args:
        tokenizer, encoder: CLIPTokenizer and CLIPTextModel.
    """

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self.length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        self._empty: Tensor | None = None

    def check(self, name: str, value: Any) -> Tensor:
        """Take a str, or a list of str with one a row.

        Raises:
            TypeError: anything else.
            ValueError: an empty list, or more tokens than the encoder reads (nothing is cut off in silence).
        """
        prompts = [value] if isinstance(value, str) else value
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
            raise TypeError(f"{name} must be a str or a list of str, got {value!r:.80}")
        if not prompts:
            raise ValueError(f"{name} must have at least one prompt, got an empty list")
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=self.length)
        for prompt, ids in zip(prompts, tokens["input_ids"], strict=True):
            if len(ids) > self.length:
                raise ValueError(f"{name} has {len(ids)} tokens, the model reads {self.length}: shorten {prompt!r:.80}")
        masked = getattr(self.encoder.config, "use_attention_mask", False)
        ids, mask = (torch.tensor(tokens[k], device=self.encoder.device) for k in ("input_ids", "attention_mask"))
        return self.encoder(ids, attention_mask=mask if masked else None)[0]

    def null(self, name: str, x: Tensor) -> Tensor:
        """The empty prompt for every row of x; encoded once."""
        if self._empty is None:
            self._empty = self.check(name, "")
        return self._empty.to(x.device).expand(x.shape[0], -1, -1)


class StableDiffusion(nn.Module):
    """(z, index, text) -> output, of the latents' shape."""

    def __init__(self, unet: Any, text: Text) -> None:
        super().__init__()
        self.unet = unet
        self.conditions = {"text": text}

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]


def load(folder: Folder, dtype: torch.dtype, device: Any) -> Pretrained:
    """The denoiser of a saved Stable Diffusion 1.x or 2.x.

    Raises:
        ModelFileError: the tokenizer's files are missing.
        ValueError: a variant that is told more than text (inpainting, distilled guidance, image variations).
    """
    diffusers, transformers = require("diffusers"), require("transformers")
    unet = folder.network("unet", diffusers.UNet2DConditionModel, dtype, device)
    codec = KLCodec(folder.network("vae", diffusers.AutoencoderKL, dtype, device).requires_grad_(False))
    encoder = folder.network("text_encoder", transformers.CLIPTextModel, dtype, device).requires_grad_(False)
    words, _ = folder.part("tokenizer", "CLIPTokenizer")
    if not (words / "tokenizer.json").exists():
        for name in ("vocab.json", "merges.txt"):
            if not (words / name).exists():
                raise ModelFileError(f"{words / name} is missing")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(words, local_files_only=True)

    more = [key for key in _UNUSED.split() if unet.config.get(key) is not None]
    channels = unet.config.in_channels
    if more or not channels == unet.config.out_channels == codec.net.config.latent_channels:
        what = f"{more[0]}={unet.config[more[0]]!r}" if more else f"{channels} channels in"
        raise ValueError(f"{folder.path}: a unet with {what} is not supported, only one told latents, time and text")
    shape = (channels, *square(unet.config.sample_size))
    return Pretrained(StableDiffusion(unet, Text(tokenizer, encoder)), folder, shape, codec)
