"""WebDataset shards: tar files that are read in order, in which files of one stem are one sample."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from suffuse.data.decode import SUFFIXES, Findings
from suffuse.data.pictures import Record
from suffuse.data.stream import PictureStream

__all__ = ["Shards", "webdataset"]


class Shards(PictureStream):
    """WebDataset shards (`webdataset`)."""

    def __init__(self, urls: Sequence[str], size: int, **options: Any) -> None:
        super().__init__(size, **options)
        self.urls = tuple(urls)

    def open(self, seed: int, cursor: Any = None) -> _ShardReader:
        """Read every shard once, in an order of the seed, each from its beginning on."""
        order = torch.randperm(len(self.urls), generator=torch.Generator().manual_seed(seed)).tolist()
        return _ShardReader([self.urls[k] for k in order], cursor or {"shard": 0, "sample": 0}, self.findings)


def webdataset(urls: str | Path | Sequence[str | Path], size: int, **options: Any) -> Shards:
    """WebDataset shards: tar files in which files of one stem are one sample (`7.jpg`, `7.cls`, `7.txt`, `7.json`).

    The class is the number in `.cls` or "label" in `.json`, the caption is `.txt` or "text" or "caption" in `.json`.

    Args:
        urls: tar files, or a pattern like "train-{0000..0099}.tar"; other than local files (https:, s3:, gs:, pipe:)
            are opened by the webdataset library.
        size, options: of `PictureStream`.
    Raises:
        ValueError: a local file is missing. ModuleNotFoundError: a pattern or an address, without webdataset.
    """
    found: list[str] = []
    for url in [urls] if isinstance(urls, str | Path) else urls:
        found += _library().shardlists.expand_urls(url) if isinstance(url, str) and "{" in url else [str(url)]
    if not found:
        raise ValueError("there is no shard to read")
    for url in found:
        if not _remote(url) and not Path(url).is_file():
            raise ValueError(f"the shard {url} is missing")
    return Shards(found, size, **options)


def _remote(url: str) -> bool:
    return "://" in url or url.startswith("pipe:")


def _library() -> Any:
    try:
        import webdataset
        import webdataset.shardlists
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "patterns and addresses of shards need webdataset: pip install 'suffuse[streams]'"
        ) from None
    return webdataset


class _ShardReader:
    def __init__(self, urls: list[str], cursor: dict[str, int], findings: Findings) -> None:
        self.urls, self.findings = urls, findings
        self._place, self._sample = cursor["shard"], cursor["sample"]
        self._records = self._read()

    @property
    def cursor(self) -> dict[str, int]:
        return {"shard": self._place, "sample": self._sample}

    def __next__(self) -> Record:
        return next(self._records)

    def _read(self) -> Iterator[Record]:
        while self._place < len(self.urls):
            url = self.urls[self._place]
            try:
                with _opened(url) as file:
                    for k, record in enumerate(_samples(file, Path(url).name)):
                        if k >= self._sample:
                            self._sample = k + 1
                            yield record
            except (tarfile.TarError, EOFError, OSError):
                self.findings.note(url, False, ("shard cut short or damaged",))
            self._place, self._sample = self._place + 1, 0


def _opened(url: str) -> BinaryIO:
    return _library().gopen(url) if _remote(url) else open(url, "rb")


def _samples(file: BinaryIO, shard: str) -> Iterator[Record]:
    """The samples of a tar file, in order; the last of a damaged one, which may lack parts, is not among them."""
    stem, parts = None, {}
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            if not member.isfile() or Path(member.name).name.startswith("."):
                continue
            folder, _, name = member.name.rpartition("/")
            base, _, suffix = name.partition(".")
            key = f"{folder}/{base}" if folder else base
            if key != stem:
                if stem is not None:
                    yield _record(f"{shard}/{stem}", parts)
                stem, parts = key, {}
            body = tar.extractfile(member)
            parts[suffix.lower()] = b"" if body is None else body.read()
        if tar.fileobj is None or tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:  # tarfile itself is silent here
            raise tarfile.ReadError("the block of zeros that ends a tar file is missing")
    if stem is not None:
        yield _record(f"{shard}/{stem}", parts)


def _record(name: str, parts: dict[str, bytes]) -> Record:
    raw = next((body for suffix, body in parts.items() if f".{suffix}" in SUFFIXES), b"")
    told: Any = {}
    with contextlib.suppress(ValueError):  # no JSON, or no UTF-8
        told = json.loads(parts.get("json", b"{}"))
    told = told if isinstance(told, dict) else {}
    label, caption = told.get("label"), told.get("text", told.get("caption", ""))
    try:
        label = int(parts["cls"]) if "cls" in parts else label
    except ValueError:
        label = None
    if "txt" in parts:
        caption = parts["txt"].decode("utf-8", errors="replace")
        caption = "" if "�" in caption else caption
    label = label if isinstance(label, int) and not isinstance(label, bool) and label >= 0 else None
    return Record(name, io.BytesIO(raw).getvalue, label, " ".join(caption.split()) if isinstance(caption, str) else "")
