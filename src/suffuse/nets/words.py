"""Text as a condition: words of a fixed vocabulary, read by a small encoder that is trained with the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from suffuse.nets.conditions import Condition, Tokens, check_sizes
from suffuse.nets.embed import TokenEmbedding

__all__ = ["Words", "words"]


def words(text: str) -> list[str]:
    """The words of a text, in small letters and without commas and full stops; "[v]" is one.

    Raises:
        ValueError: there is none.
    """
    found = re.findall(r"\[[a-z]+\]|[a-z]+|[^a-z\s,.]+", text.lower())
    if not found:
        raise ValueError("a caption needs words, got an empty one; to say nothing, leave the condition out")
    return found


@dataclass(frozen=True)
class Words(Condition):
    """A text in words of `vocabulary`, given as text or as ids; -1 is padding, and all padding means "told nothing".

    Each word gets a vector of `size` and a position; `layers` transformer layers let them read each other.
    """

    vocabulary: tuple[str, ...]
    size: int
    layers: int = 2
    longest: int = 64
    optional: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))
        check_sizes("Words", vocabulary=len(self.vocabulary), size=self.size, longest=self.longest)

    def check(self, name: str, value: object) -> Tensor:
        """Take a text, a list of texts, or ids (L,) or (rows, L) as `ids` gives them.

        Raises:
            ValueError: an empty text, one that is too long, or words that are not in the vocabulary.
        """
        if isinstance(value, str):
            value = self.ids([value], name)
        elif isinstance(value, Sequence) and value and all(isinstance(text, str) for text in value):
            value = self.ids(value, name)
        return self._tokens.check(name, value)

    def ids(self, texts: Sequence[str], name: str = "text", *, length: int | None = None) -> Tensor:
        """Numbers of words, (rows, L), padded to the longest text, or to `length`.

        Raises:
            ValueError: as for `check`.
        """
        number = {word: i for i, word in enumerate(self.vocabulary)}
        rows = []
        for text in texts:
            row = words(text)
            if unknown := sorted(set(row) - number.keys()):
                some = ", ".join(repr(word[:40]) for word in unknown[:8]) + (" ..." if len(unknown) > 8 else "")
                raise ValueError(f"{name} has unknown words {some}: this model knows {', '.join(self.vocabulary)}")
            if len(row) > (length or self.longest):
                raise ValueError(f"{name} may have {length or self.longest} words, got one with {len(row):,}")
            rows.append([number[word] for word in row])
        length = length or max(map(len, rows))
        return torch.tensor([row + [-1] * (length - len(row)) for row in rows])

    def known(self, text: str) -> str:
        """The text without the words that are not in the vocabulary.

        Raises:
            ValueError: none of its words is.
        """
        kept = [word for word in words(text) if word in self.vocabulary]
        if not kept:
            raise ValueError(f"no word of {text[:80]!r} is known: this model knows {', '.join(self.vocabulary)}")
        return " ".join(kept)

    def embedder(self, width: int) -> nn.Module:
        """(B, L) -> features (B, 1 + L, width) and which of them are visible (B, 1 + L)."""
        return TokenEmbedding(self.size, len(self.vocabulary), width, self.layers)

    @property
    def _tokens(self) -> Tokens:
        return Tokens(self.size, len(self.vocabulary), self.optional, self.layers)

    def _null(self, x: Tensor) -> Tensor:
        return torch.full((x.shape[0], 1), -1, device=x.device)
