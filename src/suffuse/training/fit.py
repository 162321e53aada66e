"""`fit`: one loop that trains anything, and takes up where it was stopped, bit for bit.

Everything random in step n is a function of (seed, n): torch's generator is seeded with them for the step and put
back afterwards, and the order of the data is a function of (seed, epoch). So a checkpoint needs no generator state,
and a resumed run repeats no draw and skips none.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser, check_range
from suffuse.training import state
from suffuse.training.ema import EMA
from suffuse.training.optimizer import Optimizer
from suffuse.training.precision import autocast, chosen
from suffuse.training.progress import Progress

__all__ = ["Fit", "fit"]

Loss = Callable[[Any, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Fit:
    """What `fit` returns: the trained model, the model of averaged weights (the same one without EMA), and the cost."""

    model: Any
    ema: Any
    steps: int
    seconds: float
    samples_per_second: float


class NotFiniteError(ValueError):
    """The loss or its gradient became infinite or not a number; training stopped before that step was taken."""


def fit(
    loss: Loss,
    data: Mapping[str, Tensor],
    model: Any,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adamw",
    ema: float | None = 0.999,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    warmup: int | None = None,
    decay: float = 1.0,
    clip: float = 1.0,
    precision: str = "auto",
    compile: bool = False,
    watch: Callable[[Any], Mapping[str, float]] | None = None,
    watch_every: int = 1000,
    checkpoint_every: float = 60.0,
    log_every: int = 50,
    progress: bool = True,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Fit:
    """Train a model.

    Args:
        loss: (model, batch) -> (B,) losses.
        data: tensors of equal first size N by name; a batch is the same names with B rows.
        model: a `Denoiser` around a module, or a module; trained in place.
        steps, batch_size: how long and how wide.
        lr: after warm-up. weight_decay: decoupled. optimizer: "adamw" or "muon", see `Optimizer`.
        ema: decay of the averaged weights, or None.
        seed: of everything random, 0 to 2^63 - 1.
        out: folder for checkpoints and `metrics.jsonl`; None keeps nothing.
        resume: go on from the newest checkpoint in `out`, if there is one.
        warmup: samples over which lr rises from 0; by default 2 % of all, at most 50 batches.
        decay: the last share of the samples after warm-up over which lr falls to 0 as a cosine; 0 never.
        clip: the gradient's norm is scaled down to this.
        precision: "auto" (bf16 autocast where the machine has it), "float32" or "bf16".
        compile: run the network through torch.compile: minutes to warm up, then faster; rounding differs.
        watch: measures the averaged model, which it gets in eval mode and without gradients, every `watch_every`
            steps and at the end; its numbers go to metrics.jsonl. Its randomness is the same each time.
        checkpoint_every: seconds between checkpoints.
        log_every: steps between lines of metrics.jsonl.
        progress: show a progress bar, or plain lines when not on a terminal.
        overwrite: begin anew where `out` already holds checkpoints.
        settings: further settings, of the loss for example, that must be the same when a run is resumed.
    Raises:
        ValueError: sizes that do not fit, data far out of [-1, 1], steps < 1, decay out of [0, 1], a resumed run with
            other settings, a folder with checkpoints and neither `resume` nor `overwrite`.
        NotFiniteError: the loss is not finite; names the step and the noise levels, the last checkpoint stays.
    """
    net = model if isinstance(model, nn.Module) else model.net
    sizes = {name: len(value) for name, value in data.items()}
    n = next(iter(sizes.values()), 0)
    if n == 0 or any(size != n for size in sizes.values()):
        raise ValueError(f"data must be tensors of one first size, got {sizes}")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be a share in [0, 1], got {decay:g}")
    if "x" in data:
        check_range(data["x"], "data['x']")
    device = next(net.parameters()).device
    total = steps * batch_size
    warmup = min(total // 50, 50 * batch_size) if warmup is None else warmup
    cuda = [device] if device.type == "cuda" else []
    dtype = chosen(precision, device)
    average = None if ema is None else EMA(net, ema)
    stepper = Optimizer(optimizer, net, lr, weight_decay)
    fixed = dict(settings or {}) | {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "ema": ema,
        "seed": seed,
        "warmup": warmup,
        "decay": decay,
        "optimizer": optimizer,
        "clip": clip,
        "precision": str(dtype),
        "items": n,
    }
    keeper = None if out is None else state.Keeper(Path(out), fixed)
    first, before = 0, 0.0
    if keeper is not None:
        if resume:
            first, before = keeper.restore(net, average, stepper)
        else:
            keeper.clear(overwrite)
    net.train()
    trained = _with_net(model, torch.compile(net)) if compile else model
    averaged = model if average is None else _with_net(model, average.net)
    began = kept = time.monotonic()
    order = _Order(n, seed)
    with Progress("train", steps, done=first, show=progress) as bar:
        for step in range(first, steps):
            rows = order.rows(step * batch_size, batch_size)
            batch = {name: value[rows.to(value.device)].to(device, non_blocking=True) for name, value in data.items()}
            rate = lr * _rate(step * batch_size, total, warmup, decay)
            losses = _forward(loss, trained, batch, seed, step, dtype, device, cuda)
            mean = losses.mean()
            mean.backward()
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            if not bool((mean + norm).isfinite()):
                if keeper is not None and step > first:
                    keeper.write(net, average, stepper, step, before + time.monotonic() - began)
                raise NotFiniteError(_diagnose(loss, model, batch, losses, seed, step, dtype, device, cuda))
            stepper.step(rate)
            if average is not None:
                average.update(net, step + 1)
            done, now = step + 1, time.monotonic()
            speed = (done - first) * batch_size / max(now - began, 1e-9)
            looks = watch is not None and (done % watch_every == 0 or done == steps)
            if keeper is not None and (done % log_every == 0 or done == steps or looks):
                entry = {
                    "step": done,
                    "samples": done * batch_size,
                    "loss": mean.item(),
                    "lr": rate,
                    "grad_norm": norm.item(),
                    "seconds": round(before + now - began, 3),
                }
                keeper.log(entry | (_look(watch, averaged, seed, dtype, device, cuda) if looks and watch else {}))
            if bar.due() or done == steps:
                bar.update(done, f"loss {mean.item():.4f}  {speed:.0f} samples/s")
            if keeper is not None and (now - kept >= checkpoint_every or done == steps):
                keeper.write(net, average, stepper, done, before + now - began)
                kept = time.monotonic()
    seconds = before + time.monotonic() - began
    net.eval()
    if average is not None:
        average.net.eval()
    return Fit(model, averaged, steps, seconds, total / seconds)


def _with_net(model: Any, net: nn.Module) -> Any:
    if isinstance(model, nn.Module):
        return net
    new = copy.copy(model)
    new.net = net
    return new


def _look(
    watch: Callable[[Any], Mapping[str, float]],
    model: Any,
    seed: int,
    dtype: torch.dtype | None,
    device: torch.device,
    cuda: list[torch.device],
) -> dict[str, float]:
    net = model if isinstance(model, nn.Module) else model.net
    training = net.training
    with torch.random.fork_rng(cuda), autocast(dtype, device), torch.no_grad():
        torch.manual_seed(mixed("watch", seed))
        found = dict(watch(model.eval() if isinstance(model, nn.Module) else _with_net(model, net.eval())))
    net.train(training)
    return found


def _rate(seen: int, total: int, warmup: int, decay: float) -> float:
    """The learning rate's factor after `seen` samples: linear warm-up, a plateau, then a cosine to 0."""
    if seen < warmup:
        return (seen + 1) / (warmup + 1)
    left, falls = (total - seen) / max(total - warmup, 1), decay
    return 1.0 if left >= falls else 0.5 * (1 - math.cos(math.pi * left / falls))


def mixed(*words: int | str) -> int:
    """A 63-bit seed from several words, by SHA-256."""
    return int.from_bytes(hashlib.sha256(json.dumps(words).encode()).digest()[:8], "little") >> 1


class _Order:
    """Which rows make up samples [p, p + B) of the endless stream of shuffled epochs."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epochs: dict[int, Tensor] = {}

    def rows(self, position: int, size: int) -> Tensor:
        parts = []
        while size > 0:
            epoch, at = divmod(position, self.n)
            if epoch not in self._epochs:
                generator = torch.Generator().manual_seed(mixed("order", self.seed, epoch))
                self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
                self._epochs[epoch] = torch.randperm(self.n, generator=generator)
            parts.append(self._epochs[epoch][at : at + size])
            position, size = position + len(parts[-1]), size - len(parts[-1])
        return torch.cat(parts)


def _forward(
    loss: Loss,
    model: Any,
    batch: dict[str, Tensor],
    seed: int,
    step: int,
    dtype: torch.dtype | None,
    device: torch.device,
    cuda: list[torch.device],
) -> Tensor:
    with torch.random.fork_rng(cuda), autocast(dtype, device):
        torch.manual_seed(mixed("step", seed, step))
        return loss(model, batch)


def _diagnose(
    loss: Loss,
    model: Any,
    batch: dict[str, Tensor],
    losses: Tensor,
    seed: int,
    step: int,
    dtype: torch.dtype | None,
    device: torch.device,
    cuda: list[torch.device],
) -> str:
    """Repeat the step, which is exact, and look at the noise levels of the rows that failed."""
    bad = (~losses.detach().isfinite()).nonzero()[:, 0]
    what = f"the loss is not finite at step {step}, in {len(bad)} of {len(losses)} rows"
    message = what if len(bad) else f"the gradient is not finite at step {step}, though the loss is"
    if isinstance(model, Denoiser):
        seen: list[Tensor] = []
        watched = copy.copy(model)
        output = model._output

        def watch(x: Tensor, t: Any, told: dict[str, Tensor]) -> Any:
            seen.append(t)
            return output(x, t, told)

        watched._output = watch  # type: ignore[method-assign]
        with torch.no_grad():
            _forward(loss, watched, batch, seed, step, dtype, device, cuda)
        if seen and isinstance(seen[0], Tensor) and seen[0].shape == losses.shape and len(bad):
            t = seen[0][bad]
            message += f", at noise levels t = {t.min().item():.3g} to {t.max().item():.3g}"
    rows = [name for name, value in batch.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if rows:
        return f"{message}: the data has values that are not finite in {rows[0]!r}"
    return f"{message}: try a lower learning rate, or precision='float32'"
