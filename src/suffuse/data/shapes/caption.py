"""Captions: from what a scene shows to words, and from words to what must hold.

caption = ["a picture of"] ["on" background] things ["on" background]
things  = thing {["and"] thing} | "shapes"         thing = object [["is"] relation object]
object  = number {size | fill | colour} noun     noun  = one of the shapes, or "shape" for any
background = "a" {style | colour} "background"
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from suffuse.data.shapes.attributes import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    SHAPES,
    SIZES,
    STYLES,
    Attributes,
    outlineable,
)
from suffuse.data.shapes.spec import MOST, Spec
from suffuse.nets.words import words

__all__ = ["VOCABULARY", "describe", "parse", "words"]

_PLURALS = {"crosses": "cross"} | {f"{shape}s": shape for shape in SHAPES if shape != "cross"}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_WAYS: tuple[tuple[str, int, bool], ...] = (  # words, relation, whether the second object is its subject
    ("to the left of", 0, False),
    ("left of", 0, False),
    ("to the right of", 0, True),
    ("right of", 0, True),
    ("above", 1, False),
    ("below", 1, True),
    ("under", 1, True),
    ("inside", 2, False),
)
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *_NUMBERS,
            *SIZES,
            *FILLS,
            *COLOURS,
            *SHAPES,
            *_PLURALS,
            "shape",
            "shapes",
            *STYLES,
            *itertools.chain.from_iterable(way.split() for way, _, _ in _WAYS),
            *("is", "and", "on", "background", "picture"),
        )
    )
)
"""Every word that a caption may hold, in a fixed order."""


@dataclass
class _Reader:
    """A caption being read, word by word."""

    text: str
    words: list[str]
    at: int = 0
    objects: list[tuple[int, int, int, int]] = field(default_factory=list)
    background: tuple[int, int] = (-1, -1)
    relation: int = -1
    open: bool = False  # any number of any shapes

    def fail(self, expected: str) -> ValueError:
        got = repr(self.words[self.at]) if self.at < len(self.words) else "its end"
        text = self.text if len(self.text) < 200 else self.text[:200] + "..."
        return ValueError(f"cannot read the caption {text!r} at word {self.at + 1}: expected {expected}, got {got}")

    def take(self, phrase: str) -> bool:
        parts = phrase.split()
        if self.words[self.at : self.at + len(parts)] != parts:
            return False
        self.at += len(parts)
        return True

    def one_of(self, names: Iterable[str]) -> str | None:
        if self.at < len(self.words) and self.words[self.at] in names:
            self.at += 1
            return self.words[self.at - 1]
        return None

    def read(self) -> None:
        self.take("a picture of")
        self._on()
        self.open = self.take("shapes")
        if not self.open:
            self._thing()
        while self.at < len(self.words):
            if self._on():
                if self.at < len(self.words):
                    raise self.fail("its end after the background")
                break
            if self.open:
                raise self.fail("a background or its end after 'shapes'")
            self.take("and")
            self._thing()

    def _on(self) -> bool:
        if not self.take("on"):
            return False
        if self.background != (-1, -1):
            raise self.fail("one background, not two")
        if not (self.take("a") or self.take("an")):
            raise self.fail("'a' and a background")
        colour = style = -1
        while not self.take("background"):
            if (word := self.one_of(STYLES)) and style < 0:
                style = STYLES.index(word)
            elif (word := self.one_of(BACKGROUNDS)) and colour < 0:
                colour = COLOURS.index(word)
            else:
                raise self.fail(f"'background', one of {', '.join(STYLES)} or one of {', '.join(BACKGROUNDS)}")
        self.background = colour, style
        return True

    def _thing(self) -> None:
        first = self._object()
        start = self.at
        said = self.take("is")
        for phrase, relation, swapped in _WAYS:
            if self.take(phrase):
                if self.relation >= 0:
                    self.at = start
                    raise self.fail("one relation, not two")
                second = self._object()
                if len(first) != 1 or len(second) != 1:
                    self.at = start
                    raise self.fail("a relation between single objects")
                self.relation = relation
                pair = second + first if swapped else first + second
                self.objects = pair + self.objects
                return
        if said:
            raise self.fail("a relation")
        self.objects += first

    def _object(self) -> list[tuple[int, int, int, int]]:
        number = self.one_of(_NUMBERS)
        if number is None:
            raise self.fail(f"an object, beginning with one of {', '.join(_NUMBERS)}")
        n = _NUMBERS[number]
        size = fill = colour = -1
        while True:
            if (word := self.one_of(SIZES)) and size < 0:
                size = SIZES.index(word)
            elif (word := self.one_of(FILLS)) and fill < 0:
                fill = FILLS.index(word)
            elif (word := self.one_of(COLOURS)) and colour < 0:
                colour = COLOURS.index(word)
            elif word := self.one_of((*_PLURALS, "shapes") if n > 1 else (*SHAPES, "shape")):
                break
            else:
                raise self.fail(f"a size, a fill, a colour or a {'plural' if n > 1 else 'singular'} noun")
        name = _PLURALS.get(word, word)
        shape = SHAPES.index(name) if name in SHAPES else -1
        return [(shape, colour, size, fill)] * n


def parse(texts: str | Sequence[str]) -> Spec:
    """What captions say must hold.

    Args:
        texts: captions in the grammar above, one or B of them.
    Raises:
        ValueError: a caption is empty, has words outside the vocabulary (all are named), more than three objects, or
            is not of the grammar (says at which word).
    """
    readers = []
    for text in [texts] if isinstance(texts, str) else texts:
        found = words(text)
        unknown = list(dict.fromkeys(word for word in found if word not in VOCABULARY))
        if unknown:
            named = ", ".join(repr(word) for word in unknown[:10]) + (" and more" if len(unknown) > 10 else "")
            raise ValueError(f"unknown words in a caption: {named}; the vocabulary is {', '.join(VOCABULARY)}")
        reader = _Reader(text, found)
        reader.read()
        if len(reader.objects) > MOST:
            raise ValueError(f"a caption names at most {MOST} objects, got {len(reader.objects)} in {text[:200]!r}")
        readers.append(reader)
    if not readers:
        raise ValueError("no caption was given")
    empty = (-1, -1, -1, -1)
    rows = torch.tensor([(r.objects + [empty] * MOST)[:MOST] for r in readers])
    ground = torch.tensor([r.background for r in readers])
    return Spec(
        count=torch.tensor([-1 if r.open else len(r.objects) for r in readers]),
        shape=rows[..., 0],
        colour=rows[..., 1],
        size=rows[..., 2],
        fill=rows[..., 3],
        background=ground[:, 0],
        style=ground[:, 1],
        relation=torch.tensor([r.relation for r in readers]),
    )


class _Choices:
    """Choices read off an integer, one after the other."""

    def __init__(self, number: int) -> None:
        self.number = number

    def below(self, n: int) -> int:
        self.number, choice = divmod(self.number, n)
        return choice


def describe(scenes: Attributes, phrasing: Sequence[int], *, full: bool = False) -> list[str]:
    """Captions of scenes.

    Args:
        scenes: B of them.
        phrasing: B integers up to 2^62 that choose what is said and how; equal numbers choose alike.
        full: always say every shape and colour and the relation.
    Returns:
        B captions, every one true of its scene.
    """
    fillable = outlineable(scenes.shape, scenes.size).tolist()
    relation = scenes.relation.tolist()
    columns = (scenes.count, scenes.shape, scenes.colour, scenes.size, scenes.fill, scenes.background, scenes.style)
    rows = zip(*(c.tolist() for c in columns), fillable, relation, strict=True)
    return [_say(_Row(*row), _Choices(number), full) for row, number in zip(rows, phrasing, strict=True)]


class _Row(NamedTuple):
    objects: int
    shape: list[int]
    colour: list[int]
    size: list[int]
    fill: list[int]
    background: int
    style: int
    fillable: list[bool]
    relation: int


def _say(row: _Row, choose: _Choices, full: bool) -> str:
    sized, filled, vague = choose.below(2), choose.below(5) < 2, choose.below(12) if not full else 12
    related = row.relation >= 0 and (full or choose.below(4) > 0)

    def thing(k: int, n: int = 1) -> str:
        parts = [SIZES[row.size[k]]] if sized else []
        if filled and row.fillable[k]:
            parts.append(FILLS[row.fill[k]])
        if not (vague == 0 and k == 0):
            parts.append(COLOURS[row.colour[k]])
        noun = "shape" if vague == 1 and k == 0 else SHAPES[row.shape[k]]
        if n > 1:
            noun += "es" if noun == "cross" else "s"
        parts.append(noun)
        number = {1: "an" if parts[0][0] in "aeiou" else "a", 2: "two", 3: "three"}[n]
        return " ".join([number, *parts])

    def look(k: int) -> tuple[int, ...]:
        return row.shape[k], row.colour[k], row.size[k], row.fill[k]

    alike: list[list[int]] = []
    for k in range(row.objects):
        for group in alike:
            if look(k) == look(group[0]):
                group.append(k)
                break
        else:
            alike.append([k])
    if related:
        ways = [(phrase, swapped) for phrase, kind, swapped in _WAYS if kind == row.relation]
        phrase, swapped = ways[choose.below(len(ways))]
        verb = "is " if choose.below(4) == 0 else ""
        a, b = (1, 0) if swapped else (0, 1)
        things = [f"{thing(a)} {verb}{phrase} {thing(b)}", *(thing(k) for k in range(2, row.objects))]
    else:
        things = [thing(group[0], len(group)) for group in alike]
        turn = choose.below(len(things))
        things = things[turn:] + things[:turn]
    last = (", and " if related else " and ") if len(things) > 1 else ""
    text = ", ".join(things[:-1]) + last + things[-1]
    if choose.below(5) < 3:
        word, pattern = COLOURS[row.background], STYLES[row.style]
        named = f"{pattern} {word}" if choose.below(3) else word
        ground = f"on {'an' if named[0] in 'aeiou' else 'a'} {named} background"
        if choose.below(4) == 0:
            return f"{ground}, {text}"
        return f"{text} {ground}" if choose.below(6) else f"a picture of {text} {ground}"
    return text if choose.below(6) else f"a picture of {text}"
