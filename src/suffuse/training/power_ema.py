"""Averages of weights whose length is chosen after training.

    average <- beta average + (1 - beta) weights,    beta = (1 - 1/t)^(gamma + 1) at step t

weighs step tau of t with the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1): its width is a share of the run,

    length = sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2).

Snapshots of two such averages span others: sum_i w_i p_i ~ p with least squares,

    A w = b,    A_ij = <p_i, p_j>,    b_i = <p_i, p>,
    <p, p'> = (gamma + 1)(gamma' + 1) min(t, t')^(gamma + gamma' + 1) / ((gamma + gamma' + 1) t^(gamma + 1) t'^(gamma' + 1)).

Karras et al. 2024 (EDM2), section 3 and appendix C.
"""  # noqa: E501

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from suffuse.training.described import fill
from suffuse.training.files import ModelFileError, read_tensors, write_tensors
from suffuse.training.parallel import peers
from suffuse.training.sharded import gather, local

__all__ = ["PowerEMA", "post_hoc_ema"]


@dataclass(frozen=True)
class PowerEMA:
    """What `fit(ema=...)` takes for averages that can be rebuilt at any length.

    Args:
        lengths: sigma_rel of the averages that are kept; the first is what `Fit.ema` holds.
        every: steps between snapshots, into out/averages; about 1/50 of the run makes most lengths exact to 1e-3.
    Raises:
        ValueError: a length that no profile has; every < 1.
    """

    lengths: tuple[float, ...] = (0.05, 0.10)
    every: int = 1000

    def __post_init__(self) -> None:
        for length in self.lengths:
            gamma(length)
        if self.every < 1 or not self.lengths:
            raise ValueError(f"PowerEMA needs lengths and every >= 1, got {self.lengths} and {self.every}")

    def to_json(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        return {"lengths": list(self.lengths), "every": self.every}


def gamma(length: float) -> float:
    """The exponent whose profile has this sigma_rel: the largest root of (g + 2)^2 (g + 3) = (g + 1) / length^2.

    Raises:
        ValueError: length is not in (0, 0.288), which gamma = 0, the plain mean, ends.
    """
    if not 0 < length < 12**-0.5:
        raise ValueError(f"an average's length must be in (0, {12**-0.5:.3f}), as a share of the run, got {length:g}")
    return float(np.roots([1, 7, 16 - length**-2, 12 - length**-2]).real.max())


class Averages:
    """The averages themselves, one network for each length.

    Args:
        net: what is trained. spec: lengths and snapshots. out: the run's folder.
    """

    def __init__(self, net: nn.Module, spec: PowerEMA, out: Path) -> None:
        self.spec, self.folder, self.team = spec, out / "averages", peers()
        self.gammas = [gamma(length) for length in spec.lengths]
        self.nets = {_name(length): copy.deepcopy(net).requires_grad_(False) for length in spec.lengths}

    @property
    def net(self) -> nn.Module:
        """The first of them."""
        return next(iter(self.nets.values()))

    @torch.no_grad()
    def update(self, net: nn.Module, n: int) -> None:
        """Take in the weights after update n, counted from 1."""
        for g, average in zip(self.gammas, self.nets.values(), strict=True):
            beta = (1 - 1 / n) ** (g + 1)
            for a, b in zip(average.parameters(), net.parameters(), strict=True):
                local(a).lerp_(local(b), 1 - beta)
            for a, b in zip(average.buffers(), net.buffers(), strict=True):
                a.copy_(b)

    def keep(self, n: int, last: bool) -> None:
        """Write a snapshot after update n, if it is time."""
        if n % self.spec.every == 0 or last:
            with self.team.folder(self.folder / f"step-{n:08d}") as work:
                for name, average in self.nets.items():
                    tensors = {key: gather(value) for key, value in average.state_dict().items()}
                    if self.team.first:
                        write_tensors(work / f"{name}.safetensors", tensors)


def _name(length: float) -> str:
    return f"ema-{length:g}"


def _inner(g: Any, t: Any, h: Any, s: Any) -> Any:
    """<p, p'> of profiles (g, t) and (h, s), with ratios so that nothing overflows."""
    ratio = (np.minimum(t, s) / np.maximum(t, s)) ** np.where(s >= t, h, g)
    return (g + 1) * (h + 1) / (g + h + 1) * ratio / np.maximum(t, s)


def combination(steps: list[int], gammas: list[float], step: int, g: float) -> tuple[np.ndarray, float]:
    """Weights on the profiles (gammas, steps) nearest to (g, step), and what is left, relative to its size."""
    t, h = np.array(steps, dtype=np.float64) / step, np.array(gammas)
    A = _inner(h[:, None], t[:, None], h[None], t[None])
    b = _inner(h, t, g, 1.0)
    w = np.linalg.lstsq(A, b, rcond=1e-14)[0]
    whole = float(_inner(g, 1.0, g, 1.0))
    left = max(whole - 2 * float(w @ b) + float(w @ A @ w), 0.0)
    return w, (left / whole) ** 0.5


def post_hoc_ema(out: str | Path, model: Any, length: float, *, step: int | None = None) -> Any:
    """The model with weights averaged over any length, from the snapshots of a run.

    Args:
        out: folder of a run trained with `ema=PowerEMA(...)`.
        model: a `Denoiser` around such a network, or the network; it is copied, not changed.
        length: sigma_rel, the average's width as a share of the run.
        step: as if training had ended there, by default its last snapshot.
    Raises:
        ModelFileError: there are no snapshots.
        ValueError: a length that these snapshots cannot make to 5 % (shorter than the time between them, say).
    """
    folder, g = Path(out) / "averages", gamma(length)
    files = [(int(f.parent.name[5:]), float(f.stem[4:]), f) for f in sorted(folder.glob("step-*/ema-*.safetensors"))]
    files = [f for f in files if step is None or f[0] <= step]
    if not files:
        raise ModelFileError(f"no snapshots in {folder}: train with ema=PowerEMA(...)")
    end = max(t for t, _, _ in files)
    weights, left = combination([t for t, _, _ in files], [gamma(s) for _, s, _ in files], end, g)
    if left > 0.05:
        raise ValueError(
            f"these {len(files)} snapshots make an average of length {length:g} only to {left:.0%}: choose one longer "
            "than the time between snapshots, nearer to those that were kept"
        )
    total: dict[str, Tensor] = {}
    for weight, (_, _, file) in zip(weights, files, strict=True):
        for name, value in read_tensors(file).items():
            if value.is_floating_point():
                total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + weight * value.double()
            else:
                total[name] = value
    net: nn.Module = copy.deepcopy(model if isinstance(model, nn.Module) else model.net)
    fill(net, total, folder)
    if isinstance(model, nn.Module):
        return net.eval()
    new = copy.copy(model)
    new.net = net.eval()
    return new
