"""What training draws from, and the endless shuffled sequence that it draws.

A set:      len(data), data[rows] -> {"x": (B, ...), ...}       a function of the rows' numbers alone
A stream:   data.open(seed, cursor) -> reader of raw records; data.decode(record) -> {"x": (...), ...} or None
The draw:   feed = draws(data, seed=0); feed.take(64) -> a batch; feed.position -> JSON; feed.seek(position)

Sample p of the sequence is a function of (data, seed, p). Of n processes, process i takes samples i, i + n, ...:
together they take what one would, in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["Augment", "Draws", "Rows", "Stream", "Tensors", "draws", "part", "shard"]

Batch = dict[str, Tensor]
Augment = Callable[[Batch, Tensor, int], Batch]
"""(batch, numbers (B,) of its samples in the sequence, seed) -> batch."""


@runtime_checkable
class Rows(Protocol):
    """A set: rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Batch:
        """Tensors of first size B by name, for row numbers (B,) int64; the same at any time and in any batch."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Records that can only be read one after the other."""

    def open(self, seed: int, cursor: Any = None) -> Reader:
        """Read one epoch, in an order that is a function of the seed, from the start or from where a cursor says."""
        ...

    def decode(self, record: Any) -> Batch | None:
        """Tensors of one item by name, or None for a record that is broken."""
        ...


class Reader(Protocol):
    """Raw records of one epoch; `cursor` (JSON) is where the next one lies."""

    def __next__(self) -> Any: ...

    @property
    def cursor(self) -> Any: ...


class Draws(Protocol):
    """The endless sequence: `take` batches, keep `position`, and `seek` it to go on as if never stopped.

    `size` is the number of items of an epoch, None where nobody knows.
    """

    size: int | None

    def take(self, n: int) -> Batch:
        """The next n samples of this process."""
        ...

    @property
    def position(self) -> dict[str, Any]:
        """Where the sequence is, as JSON."""
        ...

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a position; ValueError where it is none of this kind of data."""
        ...


class Tensors:
    """Tensors in memory as a set.

    Args:
        tensors: of equal first size N, by name.
    Raises:
        ValueError: there is none, or the sizes differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        sizes = {name: len(value) for name, value in tensors.items()}
        if not sizes or 0 in sizes.values() or len(set(sizes.values())) > 1:
            raise ValueError(f"data must be tensors of one first size, got {sizes}")
        self.tensors, self._n = dict(tensors), next(iter(sizes.values()))

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: Tensor) -> Batch:
        return {name: value[rows.to(value.device)] for name, value in self.tensors.items()}


class _Part:
    def __init__(self, data: Rows, rows: Tensor) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Batch:
        return self.data[self.rows[rows]]


def part(data: Rows | Mapping[str, Tensor], rows: Tensor) -> Rows:
    """Some rows of a set, as a set: `part(data, torch.arange(1000))`.

    Raises:
        ValueError: rows are not whole numbers within the set.
    """
    data = Tensors(data) if isinstance(data, Mapping) else data
    n = len(data)
    if rows.dtype != torch.int64 or rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= n:
        raise ValueError(f"rows must be int64 of shape (B,) in 0..{n - 1}, got {rows.dtype} {rows}")
    return _Part(data, rows)


def shard(data: Rows | Mapping[str, Tensor], i: int, n: int) -> Rows:
    """Rows i, i + n, i + 2n, ... of a set: n disjoint parts whose sizes differ by at most one.

    Raises:
        ValueError: not 0 <= i < n, or more parts than rows.
    """
    size = len(Tensors(data)) if isinstance(data, Mapping) else len(data)
    if not 0 <= i < n <= size:
        raise ValueError(f"a shard needs 0 <= i < n <= {size} rows, got i = {i} and n = {n}")
    return part(data, torch.arange(i, size, n))


def draws(
    data: Rows | Stream | Mapping[str, Tensor],
    *,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    augment: Sequence[Augment] = (),
    block: int = 2048,
) -> Draws:
    """The endless shuffled sequence of samples of any data.

    Args:
        data: tensors by name, a set or a stream.
        seed: of the order and of what `augment` does.
        shard: (i, n), this process and how many there are.
        augment: functions (batch, numbers of its samples in the sequence, seed) -> batch.
        block: of a stream, how many records are shuffled among themselves (raw, in memory); 1 keeps its order.
    Raises:
        TypeError: data is none of these. ValueError: shard or block out of range.
    """
    i, n = shard
    if not 0 <= i < n:
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if isinstance(data, Mapping):
        data = Tensors(data)
    if isinstance(data, Stream):
        return _OfStream(data, seed, shard, tuple(augment), block)
    if isinstance(data, Rows):
        if not len(data):
            raise ValueError("the set is empty: there is nothing to draw")
        return _OfRows(data, seed, shard, tuple(augment))
    raise TypeError(f"data must be tensors by name, a set (len, data[rows]) or a stream (open, decode), got {data!r}")


def _mixed(*words: int | str) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:8], "little") >> 1


def _order(n: int, *words: int | str) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_mixed(*words)))


def _checked(position: Mapping[str, Any], keys: set[str]) -> Mapping[str, Any]:
    if set(position) != keys:
        raise ValueError(f"a position of this data says {sorted(keys)}, got {dict(position)}")
    return position


class _OfRows:
    """Epoch after epoch, each in an order of its own; the position is how many samples all processes have taken."""

    def __init__(self, data: Rows, seed: int, shard: tuple[int, int], augment: tuple[Augment, ...]) -> None:
        self.data, self.seed, self.shard, self.augment = data, seed, shard, augment
        self.size: int | None = len(data)
        self._at = 0
        self._epochs: dict[int, Tensor] = {}

    @property
    def position(self) -> dict[str, Any]:
        return {"sample": self._at}

    def seek(self, position: Mapping[str, Any]) -> None:
        self._at = int(_checked(position, {"sample"})["sample"])

    def take(self, n: int) -> Batch:
        i, of = self.shard
        numbers = self._at + i + of * torch.arange(n)
        epochs = numbers.div(len(self.data), rounding_mode="floor")
        rows = torch.empty_like(numbers)
        for epoch in epochs.unique().tolist():
            mine = epochs == epoch
            rows[mine] = self._epoch(epoch)[numbers[mine] % len(self.data)]
        self._at += n * of
        batch = self.data[rows]
        for change in self.augment:
            batch = change(batch, numbers, self.seed)
        return batch

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = _order(len(self.data), "order", self.seed, epoch)
        return self._epochs[epoch]


class _OfStream:
    """Blocks of raw records, shuffled within; the position is the block's cursor and the place in the block."""

    def __init__(
        self, data: Stream, seed: int, shard: tuple[int, int], augment: tuple[Augment, ...], block: int
    ) -> None:
        self.data, self.seed, self.shard, self.augment, self.block = data, seed, shard, augment, block
        self.size: int | None = None
        self._start: dict[str, Any] = {"epoch": 0, "cursor": None, "sample": 0}
        self._samples: Iterator[tuple[int, Batch]] = self._read(0)
        self._place = 0

    @property
    def position(self) -> dict[str, Any]:
        return self._start | {"place": self._place}

    def seek(self, position: Mapping[str, Any]) -> None:
        position = dict(_checked(position, {"epoch", "cursor", "sample", "place"}))
        place = position.pop("place")
        self._start, self._place = position, place
        self._samples = self._read(place)

    def take(self, n: int) -> Batch:
        numbers, items = zip(*(next(self._samples) for _ in range(n)), strict=True)
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        for change in self.augment:
            batch = change(batch, torch.tensor(numbers), self.seed)
        return batch

    def _read(self, place: int) -> Iterator[tuple[int, Batch]]:
        i, of = self.shard
        while True:
            epoch, good = self._start["epoch"], 0
            whole = self._start["cursor"] is None and place == 0
            reader = self.data.open(_mixed("epoch", self.seed, epoch), self._start["cursor"])
            while records := _some(reader, self.block):
                first, after = self._start["sample"], reader.cursor
                order = _order(len(records), "block", self.seed, first).tolist()
                for k in range(place, len(order)):
                    self._place = k + 1
                    if (first + k) % of == i and (item := self.data.decode(records[order[k]])) is not None:
                        good += 1
                        yield first + k, item
                place = 0
                self._start = {"epoch": epoch, "cursor": after, "sample": first + len(records)}
                self._place = 0
            if whole and not good:
                raise ValueError(f"an epoch of the stream has no whole record for process {i} of {of}")
            self._start = self._start | {"epoch": epoch + 1, "cursor": None}


def _some(reader: Reader, n: int) -> list[Any]:
    records: list[Any] = []
    while len(records) < n:
        try:
            records.append(next(reader))
        except StopIteration:
            break
    return records
