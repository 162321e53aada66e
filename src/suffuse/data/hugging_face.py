"""Hugging Face data sets: a set of pictures, or a stream of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from suffuse.data.pictures import Pictures, Record, decoded
from suffuse.data.stream import PictureStream, Text

__all__ = ["hugging_face"]


class _HuggingFace(PictureStream):
    """A streamed Hugging Face data set (`hugging_face`)."""

    def __init__(self, dataset: Any, size: int, record: Callable[[Any], Record], **options: Any) -> None:
        super().__init__(size, **options)
        self.dataset, self.record = dataset, record

    def open(self, seed: int, cursor: Any = None) -> _HuggingFaceReader:
        """Read it once, its shards in an order of the seed."""
        dataset = self.dataset.shuffle(seed=seed, buffer_size=1)  # a larger buffer of theirs would not resume exactly
        if cursor is not None:
            dataset.load_state_dict(cursor)
        return _HuggingFaceReader(dataset, self.record)


class _HuggingFaceReader:
    def __init__(self, dataset: Any, record: Callable[[Any], Record]) -> None:
        self.dataset, self.rows, self.record = dataset, iter(dataset), record

    @property
    def cursor(self) -> Any:
        return self.dataset.state_dict()

    def __next__(self) -> Record:
        return self.record(next(self.rows))


def hugging_face(
    dataset: Any,
    size: int,
    *,
    image: str = "image",
    label: str | None = None,
    caption: str | None = None,
    text: Text | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> Pictures | PictureStream:
    """A Hugging Face data set, as `datasets.load_dataset` returns it: a set, or with `streaming=True` a stream.

    Args:
        dataset: a `datasets.Dataset` or `IterableDataset`.
        size: of the pictures in pixels.
        image, label, caption: names of its columns.
        text: of a stream, see `PictureStream`; a set has `.captions` and `.given(text=...)`.
        cache: of a set, folder for the decoded pixels.
        options: channels, crop and smallest.
    Raises:
        TypeError: no such data set. ValueError: a column is missing.
        ModuleNotFoundError: datasets is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError("Hugging Face data needs datasets: pip install 'suffuse[streams]'") from None
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
        raise TypeError(
            f"dataset must be a datasets.Dataset or IterableDataset (one split), got {type(dataset).__name__}"
        )
    columns = list(dataset.column_names or [])
    for name in (image, label, caption):
        if name is not None and name not in columns:
            raise ValueError(f"the data set has no column {name!r}, but {', '.join(columns)}")
    dataset = dataset.cast_column(image, datasets.Image(decode=False))  # decoded here, where broken files are named
    classes = getattr((dataset.features or {}).get(label), "names", None) or []

    def read(held: Any) -> bytes:
        if held is None:
            return b""
        return held["bytes"] if held["bytes"] is not None else Path(held["path"]).read_bytes()

    def record(row: Any, name: str = "") -> Record:
        held, said = row[image], row[caption] if caption else ""
        name = name or str((held or {}).get("path") or "a record without a name")
        number = row[label] if label else None
        said = " ".join(said.split()) if isinstance(said, str) else ""
        return Record(name, lambda: read(held), number if isinstance(number, int) and number >= 0 else None, said)

    if isinstance(dataset, datasets.IterableDataset):
        return _HuggingFace(dataset, size, record, labels=label is not None, text=text, **options)
    if text is not None:
        raise ValueError("a set is told its text by set.given(text=...), text= is for streams")
    plain = dataset.remove_columns([name for name in columns if name not in (label, caption)])
    records = [
        Record(
            f"row {k}",
            lambda k=k: read(dataset[k][image]),
            None if label is None else plain[k][label],
            "" if caption is None else " ".join((plain[k][caption] or "").split()),
        )
        for k in range(len(dataset))
    ]
    key = str(dataset._fingerprint)
    return decoded(records, size, classes=classes, cache=cache, key=key, workers=1, **options)
