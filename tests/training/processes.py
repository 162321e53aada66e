"""Run a function in n forked processes that train together over gloo.

Tests that use this are marked `processes`: `make check` runs them by themselves, so that what is forked is a process
without the threads and libraries of all other tests.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # what DDP and FSDP import when they are built: here once, instead of in every child
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.distributed.tensor
from torch.distributed.checkpoint import hf_storage  # noqa: F401

from suffuse.training import joined


def together(work: Callable[[], Any], n: int = 2, patience: float = 30.0) -> list[Any]:
    """What `work` returns in each of n processes, or what it raised."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pairs = [context.Pipe(duplex=False) for _ in range(n)]
    children = [context.Process(target=_child, args=(work, i, n, port, patience, pairs[i][1])) for i in range(n)]
    for child in children:
        child.start()
    for _, sends in pairs:
        sends.close()
    said = []
    for (receives, _), child in zip(pairs, children, strict=True):
        try:
            said.append(pickle.loads(receives.recv_bytes()))
        except EOFError:
            child.join(5)
            said.append(EOFError(f"a process ended with exit code {child.exitcode} and said nothing"))
    for child in children:
        child.join(20)
        child.kill()
    return said


def _child(
    work: Callable[[], Any], index: int, n: int, port: int, patience: float, sends: Any, quiet: bool = False
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(index), "WORLD_SIZE": str(n), "LOCAL_RANK": str(index)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined(patience):
            said = work()
    except BaseException as error:
        if not quiet:
            traceback.print_exc()
        said = error
    if quiet:
        os._exit(0)
    try:
        sends.send_bytes(pickle.dumps(said))
    except Exception:
        sends.send_bytes(pickle.dumps(RuntimeError(repr(said))))
    os._exit(0)
