"""Of 2 processes, one or both killed at random moments: no checkpoint is unreadable, every resumed run ends alike."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import time

import numpy as np
import pytest

from suffuse.training.files import read_json, read_tensors
from suffuse.training.sharded import shapes_of
from tests.training.processes import _child, together
from tests.training.test_processes import _train

pytestmark = pytest.mark.processes

STEPS = 20


def _readable(folder):
    """Every checkpoint of a run, read from end to end."""
    found = sorted((folder / "checkpoints").glob("step-*")) if (folder / "checkpoints").is_dir() else []
    for checkpoint in found:
        assert read_json(checkpoint / "state.json")["step"] == int(checkpoint.name[5:])
        for part in checkpoint.iterdir():
            if part.is_dir():
                assert shapes_of(part)
                for file in part.iterdir():
                    read_tensors(file)
            elif part.suffix == ".safetensors":
                assert read_tensors(part)
    return len(found)


def _killed_once(work, chance):
    """Start 2 processes, kill one or both after a while; whether they were done before that."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    children = [context.Process(target=_child, args=(work, i, 2, port, 10.0, pipes[i][1], True)) for i in range(2)]
    for child in children:
        child.start()
    time.sleep(chance.uniform(0.1, float(os.environ.get("SUFFUSE_KILLS_WITHIN", "4"))))
    which = chance.choice([[0], [1], [0, 1]])
    done = [not child.is_alive() for child in children]
    for i in which:
        children[i].kill()
    for child in children:
        child.join(120)
        assert not child.is_alive(), "the other process did not notice"
    return all(done)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_killed_at_random_moments_two_processes_end_with_the_same_bits(shard, tmp_path):
    kills, chance = int(os.environ.get("SUFFUSE_KILLS", "6")), random.Random(int(os.environ.get("SUFFUSE_SEED", "0")))

    def work(out):
        return _train(steps=STEPS, out=out, resume=True, checkpoint_every=0.0, shard=shard)

    whole, other = together(lambda: work(tmp_path / "whole"))
    assert all(np.array_equal(a, b) for a, b in zip(whole, other, strict=True))
    count, seen, run = 0, 0, 0
    while count < kills:
        folder, run = tmp_path / f"run{run}", run + 1
        for _ in range(5):
            finished = _killed_once(lambda folder=folder: work(folder), chance)
            seen += _readable(folder)
            print(f"kill {count}, {seen} checkpoints read", flush=True)
            if finished:
                break
            count += 1
        for said in together(lambda folder=folder: work(folder)):
            assert all(np.array_equal(a, b) for a, b in zip(whole, said, strict=True))
    print(f"\n{count} kills in {run} runs, {seen} checkpoints read")
    assert seen
