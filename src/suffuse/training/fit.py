"""`fit`: one loop that trains anything, and takes up where it was stopped, bit for bit.

Everything random in step n is a function of (seed, n): torch's generator is seeded with them for the step and put
back afterwards, and the order of the data is a function of (seed, epoch). So a checkpoint needs no generator state,
and a resumed run repeats no draw and skips none.

Under torchrun each process takes its rows of every batch, and of the random numbers drawn for it: n processes take the
step of one, up to rounding, and any number goes on where another left off.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.data import Draws, Rows, Stream, draws
from suffuse.denoise import check_range
from suffuse.training import sharded, state
from suffuse.training.backward import Backward, Loss, mixed
from suffuse.training.ema import EMA
from suffuse.training.heap import keeping_heap
from suffuse.training.interrupt import Stopped, interruptible
from suffuse.training.optimizer import Optimizer
from suffuse.training.parallel import peers
from suffuse.training.power_ema import Averages, PowerEMA
from suffuse.training.precision import autocast, chosen
from suffuse.training.progress import Progress
from suffuse.training.recompute import recomputed
from suffuse.training.shares import share
from suffuse.training.trace import NotFiniteError, diagnose

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """What `fit` returns: the trained model, the model of averaged weights (the same one without EMA), and the cost."""

    model: Any
    ema: Any
    steps: int
    seconds: float
    samples_per_second: float


def fit(
    loss: Loss,
    data: Mapping[str, Tensor] | Rows | Stream | Draws,
    model: Any,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adamw",
    lr_matrices: float | None = None,
    ema: float | PowerEMA | None = 0.999,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    warmup: int | None = None,
    decay: float = 1.0,
    clip: float = 1.0,
    precision: str = "auto",
    compile: bool = False,
    accumulate: int = 1,
    gradient_checkpointing: bool = False,
    shard: bool = False,
    watch: Callable[[Any], Mapping[str, float]] | None = None,
    watch_every: int = 1000,
    checkpoint_every: float = 60.0,
    log_every: int = 50,
    tensorboard: bool = False,
    progress: bool = True,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Fit:
    """Train a model.

    SIGTERM and Ctrl-C, where `out` is given, end it after a whole step with a checkpoint, a line that says how to go
    on, and `Stopped`, which ends the process with exit code 0 unless it is caught.

    Args:
        loss: (model, batch) -> (B,) losses; a module's own parameters are trained and kept along.
        data: tensors of equal first size N by name, or any data that `sf.data.draws` takes, or what it makes. A batch
            is tensors of B rows by name.
        model: a `Denoiser` around a module, or a module; trained in place.
        steps, batch_size: how long and how wide, of all processes together.
        lr: after warm-up. weight_decay: decoupled. optimizer: "adamw" or "muon", see `Optimizer`.
        lr_matrices: Muon's rate, by default lr: matrices may bear several times the rate that suits embeddings.
        ema: decay of the averaged weights, a `PowerEMA` for averages whose length is chosen afterwards, or None.
        seed: of everything random, 0 to 2^63 - 1.
        out: folder for checkpoints and `metrics.jsonl`; None keeps nothing.
        resume: go on from the newest checkpoint in `out`, if there is one.
        warmup: samples over which lr rises from 0; by default 2 % of all, at most 50 batches.
        decay: the last share of the samples after warm-up over which lr falls to 0 as a cosine; 0 never.
        clip: the gradient's norm is scaled down to this.
        precision: "auto" (bf16 autocast where the machine has it), "float32", "bf16", or "fp16" with scaled losses:
            a step whose gradient overflows is left out and the scale halved.
        compile: run the network through torch.compile: minutes to warm up, then faster; rounding differs.
        accumulate: the batch goes through in so many equal parts, with the memory of one.
        gradient_checkpointing: members of the network's `nn.ModuleList`s keep no activations: less memory, the same
            bits, a second forward pass.
        shard: share weights, gradients and the optimiser's memory out between the processes (FSDP2) instead of
            keeping them in each; with one process it changes nothing.
        watch: measures the averaged model, which it gets in eval mode and without gradients, every `watch_every`
            steps and at the end; its numbers go to out/metrics.jsonl. Its randomness is the same each time. See
            `sf.training.validation`.
        checkpoint_every: seconds between checkpoints.
        log_every: steps between lines of metrics.jsonl.
        tensorboard: also write them to out/tensorboard.
        progress: show a progress bar, or plain lines when not on a terminal.
        overwrite: begin anew where `out` already holds checkpoints.
        settings: further settings, of the loss for example, that must be the same when a run is resumed.
    Raises:
        ValueError: sizes that do not fit, data far out of [-1, 1], steps < 1, decay out of [0, 1], a resumed run with
            other settings, a folder with checkpoints and neither `resume` nor `overwrite`.
        NotFiniteError: the loss is not finite; names the step, the noise levels and the layer; the last checkpoint
            stays.
        DiskFullError: no room for a checkpoint; the one before is whole.
        Stopped: a signal asked for it.
        PeerLostError: another process is gone, or has not answered for the patience of `training.joined`.
    """
    team = peers()
    if isinstance(data, Mapping) and "x" in data:
        check_range(data["x"], "data['x']")
    feed: Draws = data if hasattr(data, "take") else draws(data, seed=seed)  # type: ignore[assignment, arg-type]
    if team.count > 1:
        feed.shard = (team.index, team.count)  # type: ignore[attr-defined]
    _check(steps, batch_size, accumulate, team.count, decay)
    if out is None and (tensorboard or watch is not None or isinstance(ema, PowerEMA)):
        raise ValueError("tensorboard, watch and PowerEMA write files: give fit a folder, out=...")
    net = model if isinstance(model, nn.Module) else model.net
    device, total, mine = next(net.parameters()).device, steps * batch_size, batch_size // team.count
    warmup = min(total // 50, 50 * batch_size) if warmup is None else warmup
    dtype = chosen(precision, device)
    scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None
    average = (
        Averages(net, ema, Path(out or ".")) if isinstance(ema, PowerEMA) else None if ema is None else EMA(net, ema)
    )
    averaged = model if average is None else _with_net(model, average.net)
    own = loss.to(device) if isinstance(loss, nn.Module) else None
    spread = sharded.Shards(team, shard)
    if spread.on and scaler is not None:
        raise ValueError("shard=True scales no losses: train with precision='bf16' or 'float32' instead of 'fp16'")
    net = spread(net)
    trained = _with_net(model, net) if spread.on else model
    if own is not None:
        loss = own = spread(own)
    if average is not None:
        average.nets = {name: spread(one) for name, one in average.nets.items()}
    watched = trained if average is None else _with_net(model, average.net)
    trains = net if own is None or not list(own.parameters()) else _Both(net, own)
    stepper = Optimizer(optimizer, trains, lr, weight_decay, lr_matrices)
    now = state.State(net, average, stepper, own, scaler, feed)
    fixed = dict(settings or {}) | {"steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
    fixed |= {"ema": ema.to_json() if isinstance(ema, PowerEMA) else ema, "seed": seed, "warmup": warmup}
    fixed |= {"decay": decay, "optimizer": optimizer, "clip": clip, "precision": str(dtype), "items": feed.size}
    fixed |= {"lr_matrices": lr_matrices} if lr_matrices is not None else {}
    fixed |= {"accumulate": accumulate} if accumulate > 1 else {}
    fixed |= {"loss": type(own).__name__} if own is not None else {}
    keeper = None if out is None else state.Keeper(Path(out), fixed, tensorboard, team)
    first, before = keeper.restore(now) if keeper is not None and resume else (0, 0.0)
    if keeper is not None and not resume:
        keeper.clear(overwrite)
    net.train()
    alone = Backward(loss, seed, dtype, device, accumulate, scaler)
    done, began = first, time.monotonic() - before
    kept = time.monotonic()
    with (
        keeping_heap(device),
        recomputed(net, gradient_checkpointing, lambda: share(team, mine // accumulate)),
        interruptible(keeper is not None) as asked,
        Progress("train", steps, done=first, show=progress and team.first) as bar,
        team.listening(lambda: _how(keeper, done, steps)),
    ):
        trained = _with_net(trained, torch.compile(net)) if compile else trained
        backward = alone.among(team, trained, trains, net)
        for step in range(first, steps):
            batch = {name: value.to(device, non_blocking=True) for name, value in feed.take(mine).items()}
            if step == first and "x" in batch and not isinstance(data, Mapping):
                check_range(batch["x"], "the first batch's 'x'")
            factor = _rate(step * batch_size, total, warmup, decay)
            losses, mean = backward(trained, batch, step)
            if scaler is not None:
                stepper.unscale(scaler)
            norm = sharded.gather(torch.nn.utils.clip_grad_norm_(trains.parameters(), clip))
            due = time.monotonic() - kept >= checkpoint_every
            if team.count > 1:  # the first process's clock, and anybody's signal
                total_mean, stop, late = team.sums(mean, asked.by is not None, due and team.first, device=device)
                mean, due = mean.new_tensor(total_mean / team.count), late > 0
                asked.by = asked.by or ("a signal to another process" if stop else None)
            whole = bool((mean + norm).isfinite())
            if not whole and (scaler is None or not bool(mean.isfinite()) or scaler.get_scale() < 1):
                if keeper is not None and step > first:
                    keeper.write(now, step, time.monotonic() - began)
                raise _not_finite(backward, None if spread.on else model, batch, losses, step)
            stepper.step(factor if whole else None)
            if scaler is not None:
                scaler.update()
            if average is not None and whole:
                average.update(net, step + 1)
            done, at = step + 1, time.monotonic()
            looks = watch is not None and (done % watch_every == 0 or done == steps)
            if keeper is not None and (done % log_every == 0 or done == steps or looks):
                entry = {"step": done, "samples": done * batch_size, "loss": mean.item(), "lr": lr * factor}
                entry |= {"grad_norm": norm.item(), "seconds": round(at - began, 3)}
                entry |= {"scale": scaler.get_scale()} if scaler is not None else {}
                keeper.log(entry | (_look(watch, watched, backward) if looks and watch else {}))
            if bar.due() or done == steps:
                speed = (done - first) * batch_size / max(at - began - before, 1e-9)
                bar.update(done, f"loss {mean.item():.4f}  {speed:.0f} samples/s")
            if keeper is not None:
                if isinstance(average, Averages):
                    with keeper.room(f"averages of step {done}"):
                        average.keep(done, done == steps)
                if due or done == steps or asked.by:
                    keeper.write(now, done, at - began)
                    kept = time.monotonic()
                if asked.by:
                    stopped = Stopped(asked.by, done, steps, keeper.out)
                    if team.first:
                        print(stopped, file=sys.stderr, flush=True)
                    raise stopped
    if keeper is not None:
        keeper.close()
    seconds = time.monotonic() - began
    spread.pour(device)
    for one in (model, averaged):
        (one if isinstance(one, nn.Module) else one.net).eval()
    return Fit(model, averaged, steps, seconds, total / seconds)


def _check(steps: int, batch_size: int, accumulate: int, processes: int, decay: float) -> None:
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be at least 1, got {steps} and {batch_size}")
    if accumulate < 1 or batch_size % accumulate:
        raise ValueError(f"accumulate must divide the batch of {batch_size} into equal parts, got {accumulate}")
    if batch_size % (accumulate * processes):
        raise ValueError(f"{processes} processes of {accumulate} parts each must divide the batch, got {batch_size}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be a share in [0, 1], got {decay:g}")


def _not_finite(backward: Backward, model: Any, batch: dict[str, Tensor], losses: list[Tensor], step: int) -> Exception:
    """What to raise: with the layer, where one process has bad rows and the whole model (None: it is sharded)."""
    bad = backward.team.each(sum(int((~part.isfinite()).sum()) for part in losses))
    if model is None or (any(bad) and not bad[backward.team.index]):
        rows = f"{sum(bad)} rows" if any(bad) else "its gradient"
        return NotFiniteError(f"not finite at step {step}: {rows}; rows of each process: {bad}")
    return NotFiniteError(diagnose(replace(backward, synced=None), model, batch, losses, step))


class _Both(nn.Module):
    """A network and the loss that is trained with it, for the optimiser; the network's parameters come first."""

    def __init__(self, net: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, loss


def _how(keeper: state.Keeper | None, done: int, steps: int) -> str:
    """How far a run came that lost a process, and how to go on."""
    if keeper is None or not keeper.all():
        return f"at step {done} of {steps}; there is no checkpoint"
    return (
        f"at step {done} of {steps}; the newest checkpoint is {keeper.all()[-1].name} in {keeper.out}: run the same "
        "again with resume=True (--resume) to go on"
    )


def _with_net(model: Any, net: Any) -> Any:
    if isinstance(model, nn.Module):
        return net
    new = copy.copy(model)
    new.net = net
    return new


def _look(watch: Callable[[Any], Mapping[str, float]], model: Any, how: Backward) -> dict[str, float]:
    net = model if isinstance(model, nn.Module) else model.net
    training = net.training
    with torch.random.fork_rng(how.cuda), autocast(how.dtype, how.device), torch.no_grad():
        torch.manual_seed(mixed("watch", how.seed))
        found = dict(watch(model.eval() if isinstance(model, nn.Module) else _with_net(model, net.eval())))
    net.train(training)
    getattr(net, "reshard", lambda: None)()  # FSDP2 leaves the outermost weights whole until a backward pass
    return found


def _rate(seen: int, total: int, warmup: int, decay: float) -> float:
    """The learning rate's factor after `seen` samples: linear warm-up, a plateau, then a cosine to 0."""
    if seen < warmup:
        return (seen + 1) / (warmup + 1)
    left, falls = (total - seen) / max(total - warmup, 1), decay
    return 1.0 if left >= falls else 0.5 * (1 - math.cos(math.pi * left / falls))
