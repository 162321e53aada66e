"""Prompts as what a network is told of them, by CLIP and T5 encoders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Told
from suffuse.denoise.network import each
from suffuse.hub.autoencoder import resident
from suffuse.hub.folder import Folder, require
from suffuse.training.files import ModelFileError

__all__ = ["Encoder", "Prompts"]

_FILES = {"CLIPTokenizer": ("vocab.json", "merges.txt"), "T5Tokenizer": ("spiece.model",)}


class Prompts:
    """The condition `text`: a str, or a list of str with one a row.

    Args:
        encode: (name, prompts, *encoders) -> tensors with one row a prompt.
        encoders: the encoders it asks.
        zeros: "told nothing" is zeros instead of the empty prompt.
    """

    def __init__(self, encode: Callable[..., Told], encoders: Sequence[Encoder], *, zeros: bool = False) -> None:
        self.encode, self.encoders, self.zeros = encode, tuple(encoders), zeros
        self._null: Told | None = None

    def using(self, nets: Sequence[nn.Module]) -> Prompts:
        """The same condition with other networks in its encoders."""
        encoders = [copy.copy(e) for e in self.encoders]
        for encoder, net in zip(encoders, nets, strict=True):
            encoder.net = net
        return Prompts(self.encode, encoders, zeros=self.zeros)

    def check(self, name: str, value: Any) -> Told:
        """Encode prompts, once and for all.

        Raises:
            TypeError: not a str or a list of str.
            ValueError: an empty list, or more tokens than the encoder reads (nothing is cut off in silence).
        """
        prompts = [value] if isinstance(value, str) else value
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(p, str) for p in prompts):
            raise TypeError(f"{name} must be a str or a list of str, got {value!r:.80}")
        if not prompts:
            raise ValueError(f"{name} must have at least one prompt, got an empty list")
        return self.encode(name, prompts, *self.encoders)

    def null(self, name: str, x: Tensor) -> Told:
        """What an empty prompt says, or zeros, for every row of x; encoded once."""
        if self._null is None:
            empty = self.check(name, "")
            self._null = each(torch.zeros_like, empty) if self.zeros else empty
        return each(lambda v: v.to(x.device).expand(x.shape[0], *v.shape[1:]), self._null)


class Encoder:
    """A tokenizer and a text encoder of transformers.

    Args:
        tokenizer, net: such as CLIPTokenizer and CLIPTextModel.
        length: tokens that are read, padding included.
        device: where it goes while it works, if it waits elsewhere.
        cut: read the first `length` tokens of a longer prompt, as Flux and SD3 do where a T5 reads all of it.
    """

    def __init__(self, tokenizer: Any, net: nn.Module, length: int, *, cut: bool = False, device: Any = None) -> None:
        self.tokenizer, self.net, self.length, self.cut, self.device = tokenizer, net, length, cut, device

    def tokens(self, name: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (rows, length), padded, and the mask (rows, length) of those that are not padding.

        Raises:
            ValueError: more tokens than are read.
        """
        words = self.tokenizer(list(prompts), padding="max_length", max_length=self.length, truncation=self.cut)
        for prompt, ids in zip(prompts, words["input_ids"], strict=True):
            if len(ids) > self.length:
                raise ValueError(f"{name} has {len(ids)} tokens, the model reads {self.length}: shorten {prompt!r:.80}")
        device = next(self.net.parameters()).device
        ids, mask = (torch.tensor(words[k], device=device) for k in ("input_ids", "attention_mask"))
        return ids, mask

    def __call__(self, name: str, prompts: Sequence[str], *, masked: bool = False) -> Any:
        """What transformers' model answers, with all hidden states."""
        with resident(self.net, self.device):
            ids, mask = self.tokens(name, prompts)
            return self.net(ids, attention_mask=mask if masked else None, output_hidden_states=True)


def encoder(folder: Folder, suffix: str, kind: str, *, length: int | None = None, cut: bool = False) -> Encoder:
    """The text encoder and tokenizer of a saved pipeline.

    Args:
        suffix: of the two parts' names, such as "_2".
        kind: of transformers, CLIPTextModel and the like.
        length: tokens that are read; by default those that the tokenizer and the encoder were made for.
    Raises:
        ModelFileError: files are missing.
    """
    transformers = require("transformers")
    words = "T5Tokenizer" if kind.startswith("T5") else "CLIPTokenizer"
    net = folder.network(f"text_encoder{suffix}", getattr(transformers, kind)).requires_grad_(False)
    path, _ = folder.part(f"tokenizer{suffix}", words, f"{words}Fast")
    _check_words(path, _FILES[words])
    tokenizer = getattr(transformers, words).from_pretrained(path, local_files_only=True)
    most = length or min(tokenizer.model_max_length, net.config.max_position_embeddings)
    return Encoder(tokenizer, net, most, cut=cut, device=folder.device if folder.offload else None)


def _check_words(path: Path, files: Sequence[str]) -> None:
    if not (path / "tokenizer.json").exists():
        for name in files:
            if not (path / name).exists():
                raise ModelFileError(f"{path / name} is missing")
