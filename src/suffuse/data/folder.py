"""A folder of pictures: class folders are labels, captions lie beside the pictures or in metadata.jsonl.

data/cat/black/1.png, data/dog/7.jpg      labels by folder: classes "cat/black" and "dog"
data/1.png, data/1.txt                    the caption is in the text file of the same name
data/metadata.jsonl                       or in lines like {"file_name": "cat/black/1.png", "text": "a black cat"}
"""

from __future__ import annotations

import json
from pathlib import Path

from suffuse.data.decode import SUFFIXES, Findings
from suffuse.data.pictures import Pictures, Record, decoded, stamp

__all__ = ["images"]


def images(
    path: str | Path,
    size: int,
    *,
    channels: int = 3,
    crop: str = "centre",
    smallest: int | None = None,
    labels: bool | None = None,
    cache: str | Path | None = None,
    workers: int | None = None,
) -> Pictures:
    """Read a folder of pictures, whose broken and odd files are named in `.findings`.

    Args:
        path: the folder, searched with all folders in it, in order of name; hidden files are passed over.
        size, channels, crop, smallest: as for `picture`.
        labels: whether folders are classes; by default where there are at least two and no picture lies outside.
        cache: folder for the decoded pixels, needed above 4 GiB; used again while no file has changed.
        workers: threads that decode; by default one a core.
    Raises:
        ValueError: no folder, no usable picture; labels=True and pictures outside of class folders; a line of
            metadata.jsonl that is not what it should be.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder of pictures")
    findings = Findings()
    listed = sorted(p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts))
    files = [p for p in listed if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    if cache is not None:
        files = [p for p in files if Path(cache) not in p.parents]
    told = _metadata(root)
    texts = {p.with_suffix("") for p in files}
    for p in listed:
        if not p.is_dir() and p.suffix.lower() not in SUFFIXES and p != root / "metadata.jsonl":
            if p.suffix == ".txt" and p.with_suffix("") in texts:
                continue
            if cache is None or Path(cache) not in p.parents:
                findings.note(p.relative_to(root).as_posix(), False, ("of no picture's name",))
    parents = [p.parent.relative_to(root).as_posix() for p in files]
    classes = sorted({parent for parent in parents if parent != "."})
    outside = parents.count(".")
    if labels is None:
        labels = len(classes) > 1 and not outside
    elif labels and (outside or not classes):
        raise ValueError(
            f"{outside} pictures of {root} lie in no class folder: move them into one, or pass labels=False"
        )
    records, captioned = [], []
    for file, parent in zip(files, parents, strict=True):
        name = file.relative_to(root).as_posix()
        caption, reason = _caption(file, told.pop(name, None))
        captioned.append((name, reason))
        records.append(Record(name, file.read_bytes, classes.index(parent) if labels else None, caption))
    if any(record.caption for record in records):
        for name, reason in captioned:
            if reason:
                findings.odd.setdefault(reason, []).append(name)
    for name in told:
        findings.note(name, False, ("of metadata.jsonl that are not there",))
    times = [(r.name, *_state(f), r.caption) for r, f in zip(records, files, strict=True)]
    return decoded(
        records,
        size,
        channels=channels,
        crop=crop,
        smallest=smallest,
        classes=classes if labels else (),
        findings=findings,
        cache=cache,
        key=stamp([str(root.resolve()), labels, times]),
        workers=workers,
    )


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:  # a link to nowhere
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _caption(file: Path, told: str | None) -> tuple[str, str]:
    """The caption, and what is odd about it."""
    if told is None:
        beside = file.with_suffix(".txt")
        if not beside.is_file():
            return "", "without a caption"
        try:
            told = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return "", "with a caption that is not UTF-8"
    caption = " ".join(told.split())
    return caption, "" if caption else "without a caption"


def _metadata(root: Path) -> dict[str, str]:
    file = root / "metadata.jsonl"
    told: dict[str, str] = {}
    if not file.is_file():
        return told
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry.get("text", entry.get("caption"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
            name, text = None, None
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(
                f'{file} line {number} must be like {{"file_name": "1.png", "text": "a cat"}}, got {line[:80]!r}'
            )
        told[name] = text
    return told
