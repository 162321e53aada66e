"""Textual inversion: a new word whose embedding alone is learned.

v* = argmin_v E |output(x_t, t, text with v) - target|^2,      v begins at the embedding of a word that is close

Gal et al. 2022 (An image is worth one word), eq. 2.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.adapters.places import copied, put
from suffuse.denoise import Denoiser
from suffuse.nets.embed import TokenEmbedding
from suffuse.nets.words import Words, words
from suffuse.training.files import ModelFileError, read_tensors, write_tensors

__all__ = ["Grown", "fixed", "load_word", "new_word", "save_word"]


class Grown(nn.Module):
    """An embedding whose last row is new and trained, the rows before it frozen.

    Args:
        old: the embedding, (V, size). row: what the new row begins at, (size,).
    """

    def __init__(self, old: Any, row: Tensor) -> None:
        super().__init__()
        self.old, self.row = old, nn.Parameter(row.detach().clone())

    @property
    def weight(self) -> Tensor:
        """(V + 1, size)."""
        return torch.cat([self.old.weight, self.row[None].to(self.old.weight)])

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


def new_word(model: Denoiser, word: str, like: str, *, name: str = "text") -> tuple[Denoiser, nn.ModuleList]:
    """A model that knows one more word, and the rows that are trained for it: one for each text encoder.

    Args:
        model: told a text in `Words` or by the encoders of a pipeline; it stays as it is.
        word: the new one; with `Words` of small letters, in brackets or not, as "[v]".
        like: a word that it begins as; of several tokens, the last.
        name: of the condition.
    Returns:
        The model; and the rows, for `fit(loss, data, rows)`, which end up in the model as they are trained.
    Raises:
        TypeError: the model is not told a text that has words.
        ValueError: the word is known already, or is several; `like` is not known.
    """
    spec = model.conditions.get(name)
    if isinstance(spec, Words):
        return _in_net(model, spec, word, like, name)
    if hasattr(spec, "encoders"):
        return _in_encoders(model, spec, word, like, name)
    has = ", ".join(model.conditions) or "none"
    raise TypeError(f"a word is added to a text of words or of text encoders; the conditions of this model are {has}")


def _in_net(model: Denoiser, spec: Words, word: str, like: str, name: str) -> tuple[Denoiser, nn.ModuleList]:
    if words(word) != [word.lower()]:
        raise ValueError(f"the new word must be one word such as '[v]', got {word!r}, which is read as {words(word)}")
    word = word.lower()
    if word in spec.vocabulary:
        raise ValueError(f"{word!r} is in the vocabulary already: choose another word")
    start = int(spec.ids([like], "like")[0, -1])
    net: Any = copied(model.net)  # type: ignore[arg-type]
    grown: dict[int, Grown] = {}  # one for each table, which a control shares with the network
    more = replace(spec, vocabulary=(*spec.vocabulary, word))
    for path, module in list(net.named_modules()):
        held = getattr(module, "conditions", None)
        if isinstance(held, dict) and held.get(name) is spec:
            module.conditions = held | {name: more}  # type: ignore[assignment]
        if isinstance(module, TokenEmbedding) and len(getattr(module.lookup, "weight", ())) == len(spec.vocabulary):
            old: Any = module.lookup
            table = id(old.row if isinstance(old, Grown) else old.weight)
            put(net, f"{path}.lookup", grown.setdefault(table, Grown(old, old.weight[start])))
    if len(grown) != 1:
        raise TypeError(
            f"{type(net).__name__} has {len(grown)} embeddings of {len(spec.vocabulary)} words, one is needed"
        )
    new = copy.copy(model)
    new.net, new.conditions = net, model.conditions | {name: more}
    return new, nn.ModuleList(grown.values())


def _in_encoders(model: Denoiser, spec: Any, word: str, like: str, name: str) -> tuple[Denoiser, nn.ModuleList]:
    encoders, rows = [], nn.ModuleList()
    for old in spec.encoders:
        encoder, tokenizer = copy.copy(old), copy.deepcopy(old.tokenizer)
        if not tokenizer.add_tokens(word):
            raise ValueError(f"{word!r} is in the vocabulary already: choose another word")
        start = old.tokenizer(like, add_special_tokens=False)["input_ids"]
        if not start:
            raise ValueError(f"like must have a token to begin as, got {like!r}")
        net = copied(old.net)
        table = net.get_input_embeddings()
        at = tokenizer.convert_tokens_to_ids(word)
        if at != len(table.weight):
            raise ValueError(f"the tokenizer would number the new word {at}, the encoder has {len(table.weight)} rows")
        grown = Grown(table, table.weight[start[-1]])
        for path in [path for path, module in net.named_modules(remove_duplicate=False) if module is table]:
            put(net, path, grown)
        encoder.net, encoder.tokenizer = net, tokenizer
        encoders.append(encoder)
        rows.append(grown)
    text = type(spec)(spec.encode, encoders, zeros=spec.zeros)
    new = copy.copy(model)
    new.net = copy.copy(model.net)
    new.conditions = model.conditions | {name: text}
    new.net.conditions = dict(new.conditions)  # type: ignore[attr-defined]
    return new, rows


def fixed(model: Denoiser) -> Denoiser:
    """The model with its new words as ordinary rows of ordinary embeddings, which `sf.save` keeps."""
    new = copy.copy(model)
    new.net = net = copied(model.net)  # type: ignore[arg-type]
    made: dict[Grown, nn.Embedding] = {}
    inside = {module.old for module in net.modules() if isinstance(module, Grown)}  # words before the newest
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if isinstance(module, Grown) and module not in inside:
            if module not in made:
                made[module] = nn.Embedding.from_pretrained(module.weight.detach().clone())
            put(net, path, made[module])
    return new


def save_word(rows: nn.ModuleList, word: str, path: str | os.PathLike[str]) -> None:
    """Write a learned word: its rows (1, size) under the word's name, those of further encoders under "word.1" on."""
    write_tensors(
        Path(path),
        {word if i == 0 else f"{word}.{i}": grown.row[None] for i, grown in enumerate(rows)},  # type: ignore[index]
    )


def load_word(model: Denoiser, path: str | os.PathLike[str], *, name: str = "text") -> Denoiser:
    """The model with a word that `save_word` wrote, or another library as one row of one encoder.

    Raises:
        ModelFileError: rows of another size or number than the model's encoders have.
    """
    found = list(read_tensors(Path(path)).items())
    word = found[0][0]
    spec = model.conditions.get(name)
    like = spec.vocabulary[0] if isinstance(spec, Words) else "a"
    new, rows = new_word(model, word, like, name=name)
    sizes, theirs = [g.row.numel() for g in rows], [v.numel() for _, v in found]  # type: ignore[operator, union-attr]
    if sizes != theirs:
        raise ModelFileError(f"{path} was made for another model: {word!r} has rows of {theirs} numbers, here {sizes}")
    with torch.no_grad():
        for grown, (_, value) in zip(rows, found, strict=True):
            grown.row.copy_(value.flatten())  # type: ignore[operator, union-attr]
    return new
