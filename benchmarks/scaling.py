"""What several processes cost: weak scaling from 1 to n on one core each, what they say to each other, and a model of
traffic and memory for networks that do not fit here.

Weak scaling: n processes of one thread, each with the same number of rows, against one; images a second over n times
those of one. Traffic is counted by the kernel where it leaves the process, and compared with the formulas of `model`:

    DDP      traffic of a step 2 (n - 1)/n P b       memory P (4 weights + 4 gradients + 8 AdamW + 4 EMA) bytes
    FSDP2    traffic of a step 3 (n - 1)/n P b       memory the same over n, and one block's whole weights

    python benchmarks/scaling.py [--processes 2] [--steps 20] [--repeat 3]      measure
    python benchmarks/scaling.py --model                                        compute DiT-XL/2 and a 12 B MMDiT
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # what DDP imports when it is built: here once, before the processes are forked
from torch.utils.flop_counter import FlopCounterMode

import suffuse as sf
from suffuse import losses, nets
from suffuse.training import joined, peers

WIDTH, DEPTH, ROWS = 256, 4, 64
GPU = {"flops": 400e12, "inside": 400e9, "between": 50e9}  # bf16 reached, bytes a second in a machine, between machines


def build() -> sf.Denoiser:
    """A DiT with the given width over 64 patches."""
    torch.manual_seed(0)
    net = nets.DiT(3, patch=4, width=WIDTH, depth=DEPTH, heads=4, conditions={"label": nets.Label(10)})
    return sf.Denoiser(net, sf.schedules.Linear(), "velocity")


def written() -> int:
    """Bytes that this process has given to the kernel to send or write, so far (Linux)."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("wchar"))


def work(steps: int, shard: bool) -> dict[str, float]:
    """Train for so many steps: the seconds of one, at the lower quartile."""
    torch.set_num_threads(1)
    n = peers().count
    data = {"x": sf.noise((512, 3, 32, 32), seed=0).clamp(-1, 1), "label": torch.arange(512) % 10}
    model, stamps = build(), []

    def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        stamps.append(time.perf_counter())
        return losses.denoising(model, batch)

    sf.fit(loss, data, model, steps=steps, batch_size=ROWS * n, shard=shard, progress=False)
    each = sorted(b - a for a, b in zip(stamps[:-1], stamps[1:], strict=True))
    return {"seconds": each[len(each) // 4]}


def forked(n: int, tell: Callable[[], float]) -> list[float]:
    """What `tell` returns in each of n forked processes that have joined, each on a core of its own."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.SimpleQueue()

    def child(i: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[i % len(cores)]})
        os.environ |= {"RANK": str(i), "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with joined(300):
            queue.put((i, tell()))
        os._exit(0)

    children = [context.Process(target=child, args=(i,)) for i in range(n)]
    for process in children:
        process.start()
    found = dict(queue.get() for _ in children)
    for process in children:
        process.join()
    return [found[i] for i in range(n)]


def in_processes(n: int, steps: int, shard: bool) -> dict[str, float]:
    """`work` in n processes."""
    return {"seconds": max(forked(n, lambda: work(steps, shard)["seconds"]))}


def parameters(net: torch.nn.Module) -> int:
    """How many there are."""
    return sum(p.numel() for p in net.parameters())


def model(processes: int, count: float, shard: bool, bytes_each: int = 4) -> dict[str, float]:
    """Traffic a step and memory of a process, both in bytes, for a network of `count` weights.

    A ring of n moves (n - 1)/n of what is reduced or gathered, twice for an all-reduce.
    """
    ring = (processes - 1) / processes
    passes = 3 if shard else 2  # gathered before the forward and the backward pass, scattered once; or all-reduced
    held = count * (4 + 4 + 8 + 4)
    return {"traffic": passes * ring * count * bytes_each, "memory": held / processes if shard else held}


def computed() -> None:
    """The table of docs/scale.md."""
    told = {"label": nets.Label(1000)}
    text = {"text": nets.Tokens(4096), "pooled": nets.Vector(2048)}
    with torch.device("meta"):
        subjects = [
            ("DiT-XL/2", nets.DiT.named("XL/2", out_channels=8, conditions=told), (4, 32, 32), 32),
            ("MMDiT d43", nets.MMDiT.named("d43", conditions=text), (16, 128, 128), 4),
        ]
        for name, net, shape, rows in subjects:
            given: dict[str, Any] = {"label": torch.zeros(1, dtype=torch.long)}
            if "MMDiT" in name:
                given = {"text": torch.randn(1, 154, 4096), "pooled": torch.randn(1, 2048)}
            with FlopCounterMode(display=False) as counter:
                net(torch.randn(1, *shape), torch.rand(1), **given)
            flops, count = 3 * counter.get_total_flops() * rows, parameters(net)
            seconds = flops / GPU["flops"]
            print(
                f"{name}: {count / 1e9:.2f} B weights, {flops / rows / 3e9:.0f} Gflop a forward pass and picture, "
                f"{rows} pictures a GPU: {1e3 * seconds:.0f} ms of arithmetic a step"
            )
            for n in (8, 64, 1000):
                link = GPU["inside"] if n <= 8 else GPU["between"]
                for shard in (False, True):
                    for width in (4, 2):
                        got = model(n, count, shard, width)
                        talk = got["traffic"] / link
                        print(
                            f"  {n:5} GPUs {'FSDP2' if shard else 'DDP  '} {'float32' if width == 4 else 'bf16   '} "
                            f"{got['traffic'] / 1e9:7.1f} GB a step, {1e3 * talk:7.0f} ms, share of arithmetic "
                            f"{talk / seconds:6.1%}; weights, gradients, AdamW, EMA {got['memory'] / 1e9:7.1f} GB"
                        )


def traffic(n: int, shard: bool) -> float:
    """Bytes that one process sends in a step: what 6 steps wrote over what 2 did, without a folder to write to."""

    def tell() -> float:
        sent = []
        for steps in (2, 6):
            before = written()
            work(steps, shard)
            sent.append(written() - before)
        return (sent[1] - sent[0]) / 4

    return forked(n, tell)[0]


def main() -> None:
    """Measure or compute."""
    read = argparse.ArgumentParser()
    read.add_argument("--processes", type=int, default=2)
    read.add_argument("--steps", type=int, default=20)
    read.add_argument("--repeat", type=int, default=3)
    read.add_argument("--model", action="store_true")
    options = read.parse_args()
    if options.model:
        computed()
        return
    n, count = options.processes, parameters(build().net)
    print(f"DiT of {count / 1e6:.2f} M, {ROWS} rows a process, one thread and core each")
    for shard in (False, True):
        said, expected = traffic(n, shard), model(n, count, shard)["traffic"]
        print(
            f"  {'FSDP2' if shard else 'DDP'}: {said / 1e6:.1f} MB a step measured, {expected / 1e6:.1f} by the model, "
            f"ratio {said / expected:.3f}"
        )
    best: dict[str, float] = {}
    for _ in range(options.repeat):
        for name, k, shard in (("1", 1, False), ("DDP", n, False), ("FSDP2", n, True)):
            seconds = in_processes(k, options.steps, shard)["seconds"]
            best[name] = min(best.get(name, seconds), seconds)
    for name in ("DDP", "FSDP2"):
        print(
            f"  weak scaling 1 -> {n}, {name}: {1e3 * best['1']:.0f} ms -> {1e3 * best[name]:.0f} ms a step, "
            f"{best['1'] / best[name]:.2f}"
        )


if __name__ == "__main__":
    main()
