"""What each way to few steps trains: its stages, its losses with the settings used here, and reflow's pairs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import losses
from suffuse.data import draws
from suffuse.denoise import Denoiser
from suffuse.guidance import guide
from suffuse.losses import fewstep
from suffuse.random import noise
from suffuse.training.files import read_tensors, write_tensors

__all__ = ["METHODS", "Material", "Method", "Stage", "method_of", "scales"]

HALVINGS = 8
"""Steps that the first student of progressive distillation takes."""

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Method:
    """A way to few steps.

    Attributes:
        title: in words. adds: the condition that the student's network has beside the teacher's, or None.
        jumps: whether the student jumps to the data, to be run by `samplers.consistency`, else `samplers.ddim`.
        stages: (nfe) -> names of its trainings, the last of which makes the student for that budget.
        tangents: whether it learns from exact derivatives in time, for which a student's embedding is calmed.
        lr: its rate.
    """

    title: str
    adds: str | None
    jumps: bool
    stages: Callable[[int], list[str]]
    tangents: bool = False
    lr: float = 5e-4


def _once(nfe: int) -> list[str]:
    return ["student"]


def _rounds(nfe: int) -> list[str]:
    return ["round-2", "one-step"] if nfe == 1 else ["round-2"]


def _halvings(nfe: int) -> list[str]:
    """8, 4, ..., down to the budget."""
    if nfe > HALVINGS or nfe & (nfe - 1):
        raise ValueError(f"progressive distillation halves {HALVINGS} steps: nfe must be 1, 2, 4 or 8, got {nfe}")
    return [f"steps-{HALVINGS >> k}" for k in range(int(math.log2(HALVINGS // nfe)) + 1)]


METHODS = {
    "reflow": Method("Rectified flow, second round; one step distilled", None, False, _rounds),
    "progressive": Method("Progressive distillation", None, False, _halvings),
    "consistency-distillation": Method("Consistency distillation", None, True, _once),
    "consistency-training": Method("Consistency training (ECT)", None, True, _once),
    "latent-consistency": Method("Latent consistency, guidance folded in", "w", True, _once),
    "scm": Method("Continuous-time consistency (sCM)", None, True, _once, tangents=True, lr=1e-4),
    "shortcut": Method("Shortcut model", "to", False, _once),
    "meanflow": Method("MeanFlow", "to", False, _once, tangents=True),
    "dmd": Method("Distribution matching (DMD2 without its critic)", None, True, _once),
    "dmd2": Method("Distribution matching with a critic (DMD2)", None, True, _once),
}


def method_of(name: str) -> Method:
    """The method of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: one of {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True)
class Material:
    """What a teacher was trained on.

    Attributes:
        data: as `fit` takes it. prepare: what makes batches of it, where it holds numbers of scenes; or None.
        seed: of the order.
    """

    data: Any
    prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None
    seed: int

    def batches(self, n: int) -> list[dict[str, Tensor]]:
        """n rows, 256 at a time."""
        feed = draws(self.data, seed=self.seed)
        parts = [feed.take(min(256, n - i)) for i in range(0, n, 256)]
        return parts if self.prepare is None else [self.prepare(part) for part in parts]


@dataclass(frozen=True)
class Stage:
    """One training of a method.

    Attributes:
        name: of `Method.stages`. teacher: the run's model. model: the student as it is before this stage.
        material: data. nfe: the budget. w: guidance to take over. rows: of this training. folder: for files.
    """

    name: str
    teacher: Denoiser
    model: Denoiser
    material: Material
    nfe: int
    w: float
    rows: int
    folder: Path

    def reflow(self, n: int) -> tuple[Loss, dict[str, Tensor]]:
        """The next round learns the teacher's pairs, one step that round's."""
        if self.name == "round-2":
            return partial(losses.denoising, times=losses.logit_normal), self.pairs(self.teacher, self.w, n)
        return fewstep.one_step, self.pairs(frozen(self.model), 1.0, n)

    def progressive(self) -> Loss:
        """The teacher first, then the student of the stage before."""
        count = int(self.name.removeprefix("steps-"))
        if count == HALVINGS:
            return partial(fewstep.progressive, teacher=self.teacher, steps=count, w=self.w)
        return partial(fewstep.progressive, teacher=frozen(self.model), steps=count)

    def consistency_distillation(self) -> Loss:
        """8 intervals at first, 128 at the end."""
        loss = partial(fewstep.consistency_distillation, teacher=self.teacher, w=self.w)
        return fewstep.Annealed(loss, self.rows, lambda share: {"gap": fewstep.intervals(8 * 2 ** int(4.99 * share))})

    def consistency_training(self) -> Loss:
        """The gap halves from a half of tau to a 128th."""
        loss = partial(fewstep.consistency_training, times=MIDDLE)
        return fewstep.Annealed(
            loss, self.rows, lambda share: {"gap": fewstep.ratio(1 - 2.0 ** -(1 + int(6.99 * share)))}
        )

    def latent_consistency(self) -> Loss:
        """A 25th of tau at a time, guidance from 1 to 3 or to what is asked for."""
        return partial(fewstep.latent_consistency, teacher=self.teacher, w=scales(self.w), steps=50, skip=2)

    def scm(self) -> Loss:
        """Tangents warm up over a quarter of the training."""
        spread = self.material.batches(256)[0]["x"].std().item()
        times = partial(losses.log_normal, schedule=self.teacher.schedule, mean=0.0, std=1.6)
        loss = partial(fewstep.continuous_consistency, teacher=self.teacher, w=self.w, data_std=spread, times=times)
        return fewstep.Annealed(loss, self.rows, lambda share: {"warmup": min(1.0, 4 * share)})

    def shortcut(self) -> Loss:
        """Steps of 1/32 and longer: finer than any budget asked for."""
        return partial(fewstep.shortcut, teacher=self.teacher, w=self.w, levels=5)

    def meanflow(self) -> Loss:
        """Three rows of four go to another time, and weigh as much: the student knows the slope already."""
        times = partial(losses.logit_normal, mean=0.4, std=1.2)
        return partial(fewstep.meanflow, teacher=self.teacher, w=self.w, apart=0.75, power=0.5, times=times)

    def dmd(self) -> Loss:
        """The generator learns in one batch of three, the second model in the other two."""
        return self._matching(self._second(), None)

    def dmd2(self) -> Loss:
        """A critic on the second model learns along with it."""
        fake = self._second()
        with torch.random.fork_rng([]):
            torch.manual_seed(self.material.seed)
            critic = fewstep.Critic(fake, self.material.batches(1)[0])
        return self._matching(fake, critic)

    def _second(self) -> Denoiser:
        fake = frozen(self.teacher)
        fake.net.train().requires_grad_()  # type: ignore[union-attr]
        return fake

    def _matching(self, fake: Denoiser, critic: fewstep.Critic | None) -> Loss:
        return fewstep.DMD(self.teacher, fake, steps=self.nfe, w=self.w, every=3, critic=critic, times=MIDDLE)

    def pairs(self, model: Denoiser, w: float, n: int) -> dict[str, Tensor]:
        """Noise, what the model makes of it, and the conditions it was told; kept in a file."""
        path = self.folder / "pairs.safetensors"
        if path.exists():
            return read_tensors(path)
        parts = []
        for i, batch in enumerate(self.material.batches(n)):
            told = {k: v for k, v in batch.items() if k != "x"}
            asked = model.given(**told)
            start = noise(tuple(batch["x"].shape), self.material.seed, stream=7, first=256 * i)
            parts.append(fewstep.pairs(asked if w == 1 else guide(asked, model, w), start, nfe=12) | told)
        joined = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, joined)
        return joined


def scales(w: float) -> tuple[float, float]:
    """Guidance that a student of latent consistency learns: from none to 3, or to what is asked for."""
    return 1.0, max(w, 3.0)


MIDDLE = partial(losses.logit_normal, mean=0.0, std=1.2)


def frozen(model: Denoiser) -> Denoiser:
    """A copy that no longer learns."""
    new = copy.copy(model)
    new.net = copy.deepcopy(model.net).eval().requires_grad_(False)  # type: ignore[union-attr]
    return new
