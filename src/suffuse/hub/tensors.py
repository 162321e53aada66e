"""Published weights that are pickles, read without running them: tensors in containers, and nothing else.

A pickle is a program that may import and call anything. Here it may only build tensors, numbers, strings, lists and
dicts; whatever else it asks for is refused by name, before it is imported.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, _utils

from suffuse.training.files import ModelFileError, read_tensors

__all__ = ["tensors"]


def tensors(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict, by name.

    Args:
        path: safetensors; or what torch.save wrote; or a pickle of EDM's or EDM2's, whose source code is not looked at.
        key: where the state dict is in a file that holds more, such as "ema", "state_dict" or "model"; None takes all
            there is, nested names joined by dots.
    Raises:
        ModelFileError: the file is missing, cut short, or inflates when it is read; it asks for anything but tensors;
            there is no such key, or nothing under it.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path} is missing")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        found: Any = dict(read_tensors(path))
    elif head[:4] == b"PK\x03\x04":
        found = _torch(path)
    else:
        found = _pickle(path)
    if key is not None:
        if not isinstance(found, Mapping) or key not in found:
            has = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise ModelFileError(f"{path} has no {key!r}: it has {has:.200}")
        found = found[key]
    named = dict(_walk(found, ""))
    if not named:
        raise ModelFileError(f"{path} holds no tensors" + ("" if key is None else f" under {key!r}"))
    return named


def _torch(path: Path) -> Any:
    """A file of torch.save, by torch's own reader of weights, after a look at what it would unpack to."""
    try:
        with zipfile.ZipFile(path) as file:
            parts, size = file.infolist(), path.stat().st_size
    except zipfile.BadZipFile as error:
        raise ModelFileError(f"{path} is not a whole file of torch.save ({error}): was the copy cut short?") from None
    total, packed = sum(p.file_size for p in parts), [p for p in parts if p.compress_type != zipfile.ZIP_STORED]
    if packed or total > size:
        raise ModelFileError(
            f"{path} is {size} bytes and would unpack to {total}: torch.save never compresses, so this is not read"
        )
    return _weights(path)


def _weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).split("WeightsUnpickler error:")[-1].strip().splitlines()[0]
        raise ModelFileError(f"{path} holds more than tensors, and is not read: {first}") from None
    except Exception as error:  # a file that was made to break the reader
        raise ModelFileError(f"{path} cannot be read: {error!s:.200}") from None


_OLD = 0x1950A86A20F9469CFC6C  # the number that files of torch.save began with before they were zips


class _Inert:
    """What stands for an object of a class that is not imported: its arguments and its state, and no behaviour."""

    def __init__(self, *args: Any) -> None:
        self.state: Any = args[0] if len(args) == 1 else None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    # EDM's networks keep their own source code, class name and state in one dict; only the state is looked at
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Inert,
    ("dnnlib.util", "EasyDict"): dict,
    ("builtins", "set"): set,
} | {("torch", str(d).removeprefix("torch.")): (lambda d=d: d) for d in (torch.float16, torch.bfloat16, torch.float32)}


class _Refused(pickle.UnpicklingError):
    """It is asked for something else than tensors."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.startswith("torch.nn.modules."):
            return _Inert
        raise _Refused(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("it refers to data outside of itself")


def _pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            found = _Reader(file).load()
    except _Refused as error:
        raise ModelFileError(f"{path} holds more than tensors, and is not read: {error}") from None
    except Exception as error:  # cut short, or made to break the reader
        raise ModelFileError(f"{path} is not a whole pickle of tensors ({error!r:.120})") from None
    return _weights(path) if found == _OLD else found


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name; a module's parameters, buffers and parts are named as torch names them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Inert):
        state = value.state
        if isinstance(state, Mapping) and isinstance(state.get("state"), Mapping):
            state = state["state"]
        for part in ("_parameters", "_buffers", "_modules"):
            if isinstance(state, Mapping):
                yield from _walk(state.get(part), name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{name}.{key}" if name else str(key))
