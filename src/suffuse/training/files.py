"""Writing folders that are whole or not there: into a temporary name, then renamed. Reading tensors without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = [
    "ModelFileError",
    "discard",
    "read_json",
    "read_tensors",
    "whole_folder",
    "write_json",
    "write_tensors",
    "write_text",
]


class ModelFileError(ValueError):
    """A file that is not what it should be."""


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and is gone when it does not.

    A folder that was there before is replaced only after the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = _aside(path)
    try:
        yield work
        for file in sorted(work.rglob("*")):
            _sync(file)
        _sync(work)
        os.chmod(work, 0o755)
        if path.exists():
            os.rename(path, old)
        os.rename(work, path)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        recover(path)
        raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def recover(path: Path) -> None:
    """Put back a folder that was being replaced when the machine stopped."""
    if _aside(path).exists() and not path.exists():
        os.rename(_aside(path), path)


def discard(path: Path) -> None:
    """Remove a folder so that it is never seen half there."""
    hidden = path.with_name(f".{path.name}.part")
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, or leave the one that is there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # several processes may write the same file
    part.write_text(text)
    _sync(part)
    os.replace(part, path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole, or leave the file that is there."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ModelFileError: the file is missing, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, str(path), metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; anything else, pickles first of all, is refused unread.

    Raises:
        ModelFileError: the file is missing, is a pickle or a zip of one, or is truncated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing") from None
    safe = head[8:] == b"{"  # eight bytes of length, which may look like anything, then JSON
    if not safe and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"):
        raise ModelFileError(f"{path} is a pickle, which can run code when it is read: save it as safetensors instead")
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a whole safetensors file ({error}): was the copy cut short?") from None
