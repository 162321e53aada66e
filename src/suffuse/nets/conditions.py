"""What a network may be told besides x and t: one frozen, JSON-able spec per kind of condition.

A spec checks what a user gives, makes the null that means "told nothing", and builds the module that embeds both.
"Told nothing" travels as a value (class index `classes`, NaN, padding), so rows with and without it share one batch.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.nets.embed import ImageOrNull, OrNull, Project, TimeEmbedding, TokenEmbedding


class Condition:
    """What every spec can do; the specs are `Label`, `Vector`, `Tokens`, `Words`, `Spatial` and `Scalar`."""

    optional: bool

    def check(self, name: str, value: object) -> Tensor:
        """Turn what a user gave into rows, or say what is wrong with it.

        Args:
            name: what the condition is called, for the error.
            value: a number, nested list or tensor; without a dimension for rows it becomes one row.
        Returns:
            A tensor whose first dimension is rows (1, or one per row of x), on the value's own device.
        Raises:
            TypeError: not numbers, or numbers of the wrong kind.
            ValueError: wrong shape, out of range, or not finite.
        """
        raise NotImplementedError

    def null(self, name: str, x: Tensor) -> Tensor:
        """Make the value that means "told nothing" for every row of x.

        Args:
            name: what the condition is called, for the error.
            x: (B, ...), gives rows, device and, to a spatial condition, the size.
        Raises:
            ValueError: the spec has optional=False.
        """
        if not self.optional:
            raise ValueError(
                f"this network has no null for {name!r}: it was built with optional=False, so it must be given"
            )
        return self._null(x)

    def embedder(self, width: int) -> nn.Module:
        """Build the module that turns B checked or null rows into what the network reads.

        Returns:
            (B, width) for a label, vector or scalar; features and visibility for tokens; an image for a spatial one.
        """
        raise NotImplementedError

    def _null(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Label(Condition):
    """One of `classes` classes, 0..classes-1; the index `classes` means "told nothing"."""

    classes: int
    optional: bool = True

    def __post_init__(self) -> None:
        check_sizes("Label", classes=self.classes)

    def check(self, name: str, value: object) -> Tensor:
        """Take a class, or (rows,) classes."""
        label = _integers(name, value, f"a class in 0..{self.classes - 1}")
        label = _rows(name, label, 1, "one class, or (rows,) classes")
        return _in_range(name, label, 0, self.classes)

    def embedder(self, width: int) -> nn.Module:
        """One learned vector per class, and one for the null."""
        lookup = nn.Embedding(self.classes + self.optional, width)
        # Small, so that a fresh network still hears the time beside it (Peebles & Xie 2023, their code).
        nn.init.normal_(lookup.weight, std=0.02)
        return lookup

    def _null(self, x: Tensor) -> Tensor:
        return torch.full((x.shape[0],), self.classes, device=x.device)


@dataclass(frozen=True)
class Vector(Condition):
    """A vector of `size` numbers, best of order 1; a row of NaN means "told nothing"."""

    size: int
    optional: bool = True

    def __post_init__(self) -> None:
        check_sizes("Vector", size=self.size)

    def check(self, name: str, value: object) -> Tensor:
        """Take (size,) or (rows, size) finite numbers."""
        wanted = f"({self.size},) or (rows, {self.size})"
        vector = _rows(name, _floats(name, value), 2, wanted)
        _size(name, vector, vector.shape[1], self.size, wanted)
        return _finite(name, vector)

    def embedder(self, width: int) -> nn.Module:
        """A linear layer, or a learned vector for the null."""
        return OrNull(Project(self.size, width), width) if self.optional else Project(self.size, width)

    def _null(self, x: Tensor) -> Tensor:
        return _nan(x, (x.shape[0], self.size))


@dataclass(frozen=True)
class Scalar(Condition):
    """A time-like number (the time a step goes to, a guidance scale), embedded like t; NaN means "told nothing"."""

    optional: bool = True

    def check(self, name: str, value: object) -> Tensor:
        """Take a finite number, or (rows,) of them."""
        return _finite(name, _rows(name, _floats(name, value), 1, "a number, or (rows,) numbers"))

    def embedder(self, width: int) -> nn.Module:
        """Like the time, or a learned vector for the null."""
        return OrNull(TimeEmbedding(width), width) if self.optional else TimeEmbedding(width)

    def _null(self, x: Tensor) -> Tensor:
        return _nan(x, (x.shape[0],))


@dataclass(frozen=True)
class Tokens(Condition):
    """A sequence of feature vectors (L, size), or of ids (L,) in 0..vocab-1 that get a vector of `size` and a position.

    Padding positions are rows of NaN, or the id -1; a row that is all padding means "told nothing".
    Features carry no position of their own: the order of a text encoder's outputs is already in them.
    With `layers` > 0 the tokens read each other first: a small text encoder that is trained with the network.
    """

    size: int
    vocab: int | None = None
    optional: bool = True
    layers: int = 0

    def __post_init__(self) -> None:
        check_sizes("Tokens", size=self.size, **({} if self.vocab is None else {"vocab": self.vocab}))
        if not isinstance(self.layers, int) or self.layers < 0:
            raise ValueError(f"Tokens needs layers to be a whole number of at least 0, got {self.layers!r}")

    def check(self, name: str, value: object) -> Tensor:
        """Take (L, size) or (rows, L, size) features, or with a vocabulary (L,) or (rows, L) ids."""
        if self.vocab is None:
            wanted = f"(L, {self.size}) or (rows, L, {self.size})"
            tokens = _rows(name, _floats(name, value), 3, wanted)
            _size(name, tokens, tokens.shape[2], self.size, wanted)
            padding = tokens.isnan().all(-1)
            _finite(name, tokens.masked_fill(padding[..., None], 0))
        else:
            ids = _integers(name, value, f"ids in 0..{self.vocab - 1}, or -1 for padding")
            tokens = _in_range(name, _rows(name, ids, 2, "(L,) or (rows, L)"), -1, self.vocab)
            padding = tokens < 0
        empty = padding.all(1).nonzero()
        if not self.optional and len(empty):
            row = empty[0, 0]
            raise ValueError(f"{name} must have a token in every row (optional=False), got only padding in row {row}")
        return tokens

    def embedder(self, width: int) -> nn.Module:
        """(B, L, size) or (B, L) -> features (B, 1 + L, width) and which of them are visible (B, 1 + L)."""
        return TokenEmbedding(self.size, self.vocab, width, self.layers)

    def _null(self, x: Tensor) -> Tensor:
        if self.vocab is None:
            return _nan(x, (x.shape[0], 1, self.size))
        return torch.full((x.shape[0], 1), -1, device=x.device)


@dataclass(frozen=True)
class Spatial(Condition):
    """An image (channels, *spatial) of x's own size, concatenated to x; an image of NaN means "told nothing"."""

    channels: int
    optional: bool = False

    def __post_init__(self) -> None:
        check_sizes("Spatial", channels=self.channels)

    def check(self, name: str, value: object) -> Tensor:
        """Take (rows, channels, *spatial) finite numbers; that the size is x's is checked by the network."""
        image, wanted = _floats(name, value), f"(rows, {self.channels}, *spatial)"
        if not 3 <= image.ndim <= 5:
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(image.shape)}")
        _size(name, image, image.shape[1], self.channels, wanted)
        return _finite(name, image)

    def embedder(self, width: int) -> nn.Module:
        """The image itself, or a learned colour for the null."""
        return ImageOrNull(self.channels) if self.optional else nn.Identity()

    def _null(self, x: Tensor) -> Tensor:
        return _nan(x, (x.shape[0], self.channels, *x.shape[2:]))


def spec_to_json(spec: Condition) -> dict[str, Any]:
    """Write a spec as a JSON object, such as {"type": "Label", "classes": 10, "optional": true}."""
    return {"type": type(spec).__name__, **asdict(spec)}  # type: ignore[call-overload]


def spec_from_json(data: dict[str, Any]) -> Condition:
    """Read what `spec_to_json` wrote.

    Raises:
        ValueError: an unknown type, an unknown field, or a missing one.
    """
    kinds: dict[str, Any] = {kind.__name__: kind for kind in Condition.__subclasses__()}
    given = dict(data)
    name = given.pop("type", None)
    if name not in kinds:
        raise ValueError(f"a condition's type must be one of {', '.join(kinds)}, got {name!r}")
    known = {field.name: field.default is MISSING for field in fields(kinds[name])}
    wrong = given.keys() - known.keys() or {field for field, needed in known.items() if needed} - given.keys()
    if wrong:
        raise ValueError(f"{name} has the fields {', '.join(known)}: unknown or missing {', '.join(sorted(wrong))}")
    return kinds[name](**given)


def _nan(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, torch.nan, device=x.device, dtype=x.dtype)


def check_sizes(spec: str, **sizes: int) -> None:
    """Refuse sizes that are not whole numbers of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{spec} needs {name} to be a whole number of at least 1, got {size!r}")


def _tensor(name: str, value: object, wanted: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be {wanted}, got a {type(value).__name__} that is no tensor: {error}") from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
    return tensor


def _integers(name: str, value: object, wanted: str) -> Tensor:
    tensor = _tensor(name, value, wanted)
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
    return tensor.long()


def _floats(name: str, value: object) -> Tensor:
    tensor = _tensor(name, value, "numbers")
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _rows(name: str, tensor: Tensor, ndim: int, wanted: str) -> Tensor:
    rows = tensor[None] if tensor.ndim == ndim - 1 else tensor
    if rows.ndim != ndim:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")
    return rows


def _size(name: str, tensor: Tensor, got: int, size: int, wanted: str) -> None:
    if got != size:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


def _in_range(name: str, tensor: Tensor, low: int, end: int) -> Tensor:
    wrong = tensor[(tensor < low) | (tensor >= end)]
    if wrong.numel():
        padding = ", or -1 for padding" if low < 0 else ""
        raise ValueError(f"{name} must be in 0..{end - 1}{padding}, got {wrong[0].item()}")
    return tensor


def _finite(name: str, tensor: Tensor) -> Tensor:
    wrong = tensor[~tensor.isfinite()]
    if wrong.numel():
        raise ValueError(f"{name} must be finite, got {wrong[0].item()}")
    return tensor
