"""What a run's own numbers say against it: findings in words, each with the value seen and what to do.

Where each is asked, by whoever makes the call (`fit` itself says nothing):

    before training     `data_range(x)`, `terminal_snr(schedule)`, `decay_never_happens(...)`
    before sampling     `guided_without_dropout(...)`, `terminal_snr(model.schedule)`
    before evaluating   `ema_unused(...)`
    of a finished run   `examine(folder)`: all that its files tell

A check returns one sentence, or None where all is well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse.schedules import Schedule, from_json
from suffuse.training.files import ModelFileError, read_json, read_tensors

__all__ = [
    "data_range",
    "decay_never_happens",
    "ema_unused",
    "examine",
    "guided_without_dropout",
    "terminal_snr",
]


def data_range(x: Tensor) -> str | None:
    """Data that is not spread over about [-1, 1].

    Args:
        x: some of the data, (B, ...).
    """
    low, high, std = x.min().item(), x.max().item(), x.float().std().item()
    seen = f"the data runs from {low:.3g} to {high:.3g} with standard deviation {std:.3g}"
    if not bool(x.isfinite().all()):
        return "the data has values that are not finite"
    if low == high:
        return f"the data is {low:.3g} everywhere: is it the right file?"
    if low >= 0 and high <= 1:
        return f"{seen}, as pictures in [0, 1] do: scale it to [-1, 1] by 2 x - 1"
    if std < 0.1:
        return f"{seen}: the noise, of 1, hides it at nearly every time; scale it up, or train on edm(data_std)"
    if std > 3:
        return f"{seen}: it should be about 1; scale it down, or the schedule ends before the data is hidden"
    return None


def terminal_snr(schedule: Schedule, *, std: float = 1.0) -> str | None:
    """A schedule that ends before the data is hidden, while sampling begins at pure noise.

    What is left of the data's mean then cannot be sampled: pictures come out of medium brightness.

    Args:
        schedule: of the model. std: of what all pixels share, at most that of the data.
    Lin et al. 2024, section 3.1.
    """
    alpha, sigma = schedule(1.0)
    left = alpha * std / sigma
    if left <= 0.025:
        return None
    return (
        f"{schedule} ends at logsnr {schedule.logsnr(1.0):.2f}: {left:.1%} of the data is left in what training calls "
        "noise; train on schedule.zero_terminal_snr(), .shift(s) with s > 1, Linear or Cosine, or with offset noise"
    )


def decay_never_happens(
    *, steps: int, batch_size: int, warmup: int | None = None, decay: float = 1.0, done: int | None = None
) -> str | None:
    """A learning rate that never falls: there is no decay, warm-up takes all, or the run ended before.

    Args:
        steps, batch_size, warmup, decay: of `fit`. done: steps taken, if it was stopped.
    """
    total = steps * batch_size
    warmup = min(total // 50, 50 * batch_size) if warmup is None else warmup
    if warmup >= total:
        return f"warm-up lasts {warmup} samples, the run {total}: the learning rate never reaches its peak, nor falls"
    if decay == 0:
        return "decay=0: the learning rate never falls, and the last steps only add noise; the average has to hide it"
    begins = total - decay * (total - warmup)
    if done is not None and done < steps and done * batch_size < begins + 0.5 * (total - begins):
        what = "has not begun to fall" if done * batch_size <= begins else "has hardly fallen"
        return (
            f"the run stopped at step {done} of {steps}, where the learning rate {what}: resume it, or train anew with "
            f"steps={done} so that it does"
        )
    return None


def guided_without_dropout(settings: Mapping[str, Any], w: float) -> str | None:
    """Guidance asked of a model that was never told nothing.

    Args:
        settings: of the run. w: guidance scale, 1 is off.
    """
    dropout = settings.get("dropout")
    if w == 1 or dropout is None or dropout > 0:
        return None
    return (
        f"guidance w={w:g} of a model trained with dropout=0: its answer without a condition was never trained and is "
        "noise; train with dropout=0.1, or guide with a weaker model (autoguidance)"
    )


def ema_unused(weights: Mapping[str, Tensor], checkpoint: str | Path) -> str | None:
    """Weights that are the last ones of a run which also has their average.

    Args:
        weights: a state_dict. checkpoint: folder of a checkpoint of that run.
    """
    averages = sorted(Path(checkpoint).glob("ema*.safetensors"))
    if not averages:
        return None
    last = read_tensors(Path(checkpoint) / "model.safetensors")
    if any(_same(weights, read_tensors(file)) for file in averages) or not _same(weights, last):
        return None
    return (
        f"these are the weights of the last step, though the run kept their average ({averages[0].name}): use Fit.ema, "
        "which is better nearly always"
    )


def examine(folder: str | Path) -> list[str]:
    """All that the files of a run folder tell: `model/`, `run.json`, `metrics.jsonl` and the newest checkpoint.

    Raises:
        ModelFileError: there is no such folder, or nothing of a run in it.
    """
    folder = Path(folder)
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    model = folder / "model"
    if not checkpoints and not model.is_dir():
        raise ModelFileError(f"{folder} holds neither checkpoints nor a model: it is not the folder of a training")
    found: list[str | None] = []
    if checkpoints:
        about = read_json(checkpoints[-1] / "state.json")
        s = about["settings"]
        options = {k: s[k] for k in ("steps", "batch_size", "warmup", "decay")}
        found.append(decay_never_happens(**options, done=about["step"]))
        if s.get("ema") is None:
            found.append("the run kept no average of its weights (ema=None): sampling from the last step's is worse")
    if model.is_dir():
        found.append(terminal_snr(from_json(read_json(model / "model.json")["schedule"])))
        if checkpoints:
            found.append(ema_unused(read_tensors(model / "model.safetensors"), checkpoints[-1]))
    if (folder / "metrics.jsonl").exists():
        found.append(_clipped([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]))
    return [sentence for sentence in found if sentence]


def _clipped(lines: list[dict[str, Any]]) -> str | None:
    late = [line["scale"] for line in lines if "scale" in line][-1:]
    if late and late[0] < 1:
        return f"the fp16 loss scale fell to {late[0]:g}: gradients overflow again and again; use precision='bf16'"
    return None


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
