"""Networks whose weights are shared out between processes, and their checkpoints.

`shard` is FSDP2: every process keeps 1/n of each tensor, whole blocks are gathered while they are used, gradients are
summed and scattered. A checkpoint is one safetensors file from each process (torch.distributed.checkpoint, no
pickle), which any number of processes can read.

Zhao et al. 2023 (FSDP); Rajbhandari et al. 2020 (ZeRO, stage 3).
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from suffuse.training.files import ModelFileError
from suffuse.training.parallel import Peers
from suffuse.training.recompute import blocks

__all__ = ["Shards", "copy_in", "gather", "local", "part_of", "read_shards", "sharded", "shapes_of", "write_shards"]


class Shards:
    """Networks as several processes train them: with the first one's weights, and shared out where asked for.

    Args:
        team: the processes. on: whether to share out, which one process never does.
    """

    def __init__(self, team: Peers, on: bool) -> None:
        self.team, self.on, self.pairs = team, on and team.count > 1, []

    def __call__(self, net: nn.Module) -> nn.Module:
        """What to train in the place of this one."""
        self.team.same(net)
        if not self.on or not any(True for _ in net.parameters()):
            return net
        own = shard(net)
        self.pairs.append((own, net))
        return own

    def pour(self, device: torch.device) -> None:
        """Give every network memory again, and its trained weights."""
        for own, net in self.pairs:
            whole = {name: gather(value) for name, value in own.state_dict().items()}
            kept = {name: value for name, value in own.named_buffers() if name not in whole}
            net.to_empty(device=device)
            with torch.no_grad():
                for name, value in [*net.named_parameters(), *net.named_buffers()]:
                    value.copy_(whole[name] if name in whole else kept[name])


def shard(net: nn.Module) -> nn.Module:
    """A network with the weights of `net`, sharded block by block; `net` itself is left without memory until `pour`."""
    from torch.distributed.fsdp import fully_shard

    own = copy.deepcopy(net)
    for block in blocks(own):
        if any(True for _ in block.parameters()):
            fully_shard(block)
    fully_shard(own)
    net.to_empty(device="meta")
    return own


def sharded(value: Any) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor, which is the tensor where it is not shared out."""
    return value.to_local() if sharded(value) else value  # type: ignore[attr-defined]


def gather(value: Tensor) -> Tensor:
    """The whole tensor, in every process."""
    return value.full_tensor() if sharded(value) else value  # type: ignore[attr-defined]


def copy_in(value: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, or this process's part of it."""
    local(value).copy_(part_of(whole, value))


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """What `local(like)` would be if `like` were this whole tensor."""
    if not sharded(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()  # type: ignore[attr-defined]


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write every process's parts into one folder; all processes call it."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    store = HuggingFaceStorageWriter(str(folder), save_distributed=True, thread_count=1)
    save({name: value.detach() for name, value in tensors.items()}, storage_writer=store)


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or shared out in any way, from what any number of processes wrote; all processes call it.

    Raises:
        ModelFileError: a name is missing or unknown, or a file is damaged.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    known = shapes_of(folder)
    if known.keys() != tensors.keys():
        odd = sorted(known.keys() ^ tensors.keys())
        raise ModelFileError(f"{folder} does not fit: {len(odd)} tensors are missing or unknown (first: {odd[0]})")
    for name, value in tensors.items():
        if tuple(value.shape) != known[name]:
            raise ModelFileError(f"{folder}: {name} has shape {known[name]}, the network wants {tuple(value.shape)}")
    alone = not dist.is_initialized()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except Exception as error:
        raise ModelFileError(f"{folder} is damaged: {error}") from error


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """The whole shape of every tensor in a folder of shards.

    Raises:
        ModelFileError: a file is damaged, or a part of a tensor is missing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    found: dict[str, int] = {}
    for name, part, offset in _parts(folder):
        ends = tuple(a + b for a, b in zip(offset, part, strict=True))
        shapes[name] = tuple(map(max, shapes.get(name, ends), ends))
        found[name] = found.get(name, 0) + torch.Size(part).numel()
    for name, shape in shapes.items():
        if found[name] != torch.Size(shape).numel():
            raise ModelFileError(f"{folder}: a part of {name} is missing")
    return shapes


def _parts(folder: Path) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """(name, shape, offset) of every tensor in every file."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), "pt") as opened:
                about = json.loads((opened.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
                for name in opened.keys():  # noqa: SIM118
                    part = tuple(opened.get_slice(name).get_shape())
                    yield name, part, tuple(about.get(name, {}).get("saved_offsets", [0] * len(part)))
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ModelFileError(f"{file} is not a whole safetensors file ({error})") from None
