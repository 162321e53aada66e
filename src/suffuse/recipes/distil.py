"""Few steps from many: any trained run, distilled by any method of `losses.fewstep`, on the data it was trained on.

A student is the teacher's network with the teacher's weights, and with one more condition where its method needs one:
`to` for two-time networks, `w` where guidance is folded in. What is added begins silent, so the student begins as the
teacher. Several trainings in a row (rounds of reflow, halvings of progressive distillation) are stages; each is one
`fit`, in a folder of its own, and the steps are shared out evenly.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse import data, grids, metrics, nets, samplers
from suffuse.denoise import Denoiser
from suffuse.nets.embed import TimeEmbedding
from suffuse.recipes import digits, images, shapes, toy
from suffuse.recipes.distil_methods import METHODS, Loss, Material, Stage, method_of, scales
from suffuse.recipes.draw import encoded, sample_many
from suffuse.recipes.run import Run
from suffuse.training import fit, load, save
from suffuse.training.described import build, describe
from suffuse.training.files import read_json, read_tensors, write_json

__all__ = ["METHODS", "cost", "evaluate", "inherit", "measured", "model_for", "plan", "student", "train"]

STEPS, BATCH, EMA, PAIRS = 1080, 64, 0.995, 4096
"""Steps and batch are those that the teacher of digits was trained with."""


def student(teacher: Denoiser, adds: str | None = None, *, seed: int = 0, calm: bool = False) -> Denoiser:
    """A model of the teacher's network and weights in float32, with one more condition, a number, not heard yet.

    Args:
        teacher: what to begin as. adds: the condition's name. seed: of the weights that read it.
        calm: whether its embeddings of times are calmed (`TimeEmbedding.calm`): then it begins nearly as the teacher.
    Raises:
        ValueError: the teacher has that condition already: it was distilled before.
    """
    about = describe(teacher.net)  # type: ignore[arg-type]
    if adds is None:
        net = copy.deepcopy(teacher.net)
    elif "args" not in about:
        raise ValueError(f"{about['type']} cannot be built anew with a condition {adds!r}: only suffuse's networks can")
    elif adds in teacher.conditions:
        why = "its guidance is folded in" if adds == "w" else "it is a two-time network"
        raise ValueError(f"the teacher is told {adds!r} already, {why}: distil the model that it was distilled from")
    else:
        about["args"]["conditions"][adds] = nets.spec_to_json(nets.Scalar())
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            net = build(about)
        silent = net.told.embedders[-1]  # type: ignore[union-attr, index]
        nn.init.zeros_(silent.embed.second.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(silent.embed.second.bias)  # type: ignore[union-attr, arg-type]
        inherit(net, teacher.net, new=f"told.embedders.{len(about['args']['conditions']) - 1}.")  # type: ignore[arg-type]
    net = net.float().train().requires_grad_()  # type: ignore[union-attr]
    for embedding in [m for m in net.modules() if isinstance(m, TimeEmbedding)] if calm else ():
        embedding.calm()
    how: dict[str, Any] = {"variance": teacher.variance, "shape": teacher.shape, "codec": teacher.codec}
    return Denoiser(net, teacher.schedule, teacher.parameterization, **how)


def inherit(net: nn.Module, teacher: nn.Module, *, new: str = "") -> None:
    """Copy the teacher's weights into a network that has them all, and `new` beside them.

    Args:
        new: how the names of what the teacher does not have begin.
    Raises:
        ValueError: a student of another shape.
    """
    mine, theirs = net.state_dict(), teacher.state_dict()
    mine = {k: v for k, v in mine.items() if not (new and k.startswith(new))}
    if other := sorted(mine.keys() ^ theirs.keys()):
        whose = "the student" if other[0] in mine else "the teacher"
        raise ValueError(f"a student of another shape: only {whose} has {other[0]} (of {len(other)} such weights)")
    for name, value in mine.items():
        if value.shape != theirs[name].shape:
            raise ValueError(
                f"a student of another shape: {name} is {tuple(value.shape)}, the teacher's {tuple(theirs[name].shape)}"
            )
        value.copy_(theirs[name])


def train(
    run: str | Path,
    out: str | Path,
    *,
    method: str = "meanflow",
    nfe: int = 1,
    w: float = 1.0,
    seed: int = 0,
    steps: int = STEPS,
    batch_size: int = BATCH,
    lr: float | None = None,
    ema: float = EMA,
    pairs: int = PAIRS,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Distil a run into a student of few steps, and write a run folder.

    Args:
        run: the teacher's folder, or the name of a model that ships. out: the student's folder.
        method: of `METHODS`. nfe: evaluations a sample that the student is for.
        w: guidance of the teacher that the student takes over, 1 is off; "latent-consistency" learns 1 to max(w, 3),
            and is told which when it samples.
        seed: of order and noise. steps: of all stages together. batch_size, ema: as for `fit`. lr: by
            default the method's own.
        pairs: that reflow's second round learns from.
        resume: go on from what is there. overwrite: begin anew where there is something.
    Raises:
        ValueError: an unknown method; nfe < 1, or too many for it; fewer steps than stages; a teacher that was
            distilled already; reflow of a model that is no flow; guidance for consistency training, which has no
            teacher, or of a teacher that cannot be guided; a folder that holds something else.
    """
    how, made, out = method_of(method), Run.open(run), Path(out)
    lr = how.lr if lr is None else lr
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1, got {nfe}")
    if method == "consistency-training" and w != 1:
        raise ValueError(f"consistency training learns from data alone, no teacher is asked that w={w:g} could guide")
    if made.recipe == "distil":
        raise ValueError(f"{made.path} is a student itself, its guidance would be folded twice: distil its teacher")
    names, teacher = how.stages(nfe), made.model()
    if steps < len(names):
        raise ValueError(f"steps must be at least {len(names)}, one for each of {', '.join(names)}, got {steps}")
    _guidable(teacher, method, w)
    material = _material(made, seed)
    teacher.net.float()  # type: ignore[union-attr]
    settings: dict[str, Any] = {"method": method, "nfe": nfe, "w": w, "seed": seed}
    settings |= {"steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema}
    _begin(out, {"teacher": made.model_hash, **settings, "pairs": pairs}, resume, overwrite)
    model, seconds, share = student(teacher, how.adds, seed=seed, calm=how.tangents), 0.0, max(1, steps // len(names))
    for name in names:
        folder = out / name
        if resume and (folder / "seconds.json").exists():
            model = _like(model, load(folder / "model"))
            seconds += read_json(folder / "seconds.json")["seconds"]
            continue
        began = time.monotonic()
        stage = Stage(name, teacher, model, material, nfe, w, share * batch_size, folder)
        if method == "reflow":
            loss, feed = stage.reflow(pairs)
        else:
            loss, feed = getattr(stage, method.replace("-", "_"))(), material.data
            loss = loss if material.prepare is None else _Prepared(loss, material.prepare)
        before = time.monotonic() - began
        done = fit(
            loss,
            feed,
            model,
            steps=share,
            batch_size=batch_size,
            lr=lr,
            ema=ema,
            seed=seed,
            out=folder,
            resume=resume,
            decay=0.5,
            precision="float32",  # what is learned are differences of numbers that are nearly equal
            settings={"teacher": made.model_hash, "method": method, "stage": name, "nfe": nfe, "w": w},
            log_every=20,
            progress=progress,
        )
        save(done.ema, folder / "model")
        write_json(folder / "seconds.json", {"seconds": round(done.seconds + before, 2)})
        model, seconds = _like(model, done.ema), seconds + done.seconds + before
    save(model, out / "model")
    settings = {"teacher": str(made.path), "of": made.recipe, **settings}
    settings |= {"scales": scales(w)} if how.adds == "w" else {}
    settings |= {"sampler": "consistency" if how.jumps else "ddim", "grid": "uniform"}
    result = Run(out, "distil", made.shape, settings, round(seconds, 2))
    result.write()
    write_json(out / "cost.json", cost(result))
    return result


def _guidable(teacher: Denoiser, method: str, w: float) -> None:
    """Refuse guidance that says nothing, or that its student is not taught."""
    if not math.isfinite(w):
        raise ValueError(f"w must be finite, got {w:g}")
    if method == "latent-consistency" and w < 1:
        raise ValueError(f"latent-consistency learns guidance from w=1 on, got w={w:g}")
    if method == "latent-consistency" or w != 1:
        blank = [name for name, spec in teacher.conditions.items() if not getattr(spec, "optional", True)]
        if blank or not teacher.conditions:
            lacks = f"has no null {blank[0]!r}" if blank else "takes no conditions"
            raise ValueError(
                f"this teacher {lacks} and cannot be guided: leave w at 1, with another method than latent-consistency"
            )


def _begin(out: Path, asked: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else; clear what is to be overwritten; keep what was asked for."""
    kept = out / "asked.json"
    if (out / "run.json").exists() and (recipe := read_json(out / "run.json")["recipe"]) != "distil":
        raise ValueError(f"{out} holds a run of {recipe}, which a student would replace: name another folder")
    parts = {name for how in METHODS.values() for n in (1, 2) for name in how.stages(n)}
    left = ("checkpoints", "pairs.safetensors", "seconds.json")
    there = [out / name for name in sorted(parts) if any((out / name / file).exists() for file in left)]
    if there and not (resume or overwrite):
        raise ValueError(f"{there[0]} holds checkpoints or pairs of an earlier training: resume, or overwrite them")
    if there and resume and kept.exists():
        before = read_json(kept)
        if other := [f"{k} was {before.get(k)!r}, now {asked[k]!r}" for k in asked if before.get(k) != asked[k]]:
            raise ValueError(f"{out} was begun with other settings: {', '.join(other)}")
    for folder in there if overwrite and not resume else []:
        shutil.rmtree(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_json(kept, asked)


def _like(model: Denoiser, other: Denoiser) -> Denoiser:
    """The weights of another in a model that goes on learning."""
    new = copy.copy(model)
    new.net = copy.deepcopy(other.net).train().requires_grad_()  # type: ignore[union-attr]
    return new


class _Prepared(nn.Module):
    """A loss of batches that are made of what the data hold: scenes of their numbers."""

    def __init__(self, loss: Loss, prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> None:
        super().__init__()
        self.loss, self.prepare = loss, prepare

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return self.loss(model, self.prepare(batch))


def _material(made: Run, seed: int) -> Material:
    if made.recipe == "digits":
        return Material(data.digits("train"), None, seed)
    if made.recipe == "toy":
        return Material({"x": toy.points(made.settings["data"], 50_000, seed)}, None, seed)
    if made.recipe == "images":
        found, mine, _ = images.again(made)
        return Material(data.part(found, mine), None, seed)
    if made.recipe == "shapes":
        scenes, model = shapes.Scenes(seed), made.model()
        text = model.conditions["text"]

        def prepare(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
            drawn = scenes[batch["item"]]
            x = encoded(model, drawn.images, int(batch["item"][0]))
            return {"x": x, "text": text.ids(drawn.captions, length=shapes.WORDS)}

        return Material({"item": torch.arange(2**20)}, prepare, seed)
    raise ValueError(f"{made.path} is a run of {made.recipe}: distil knows the data of digits, toy, images and shapes")


def plan(made: Run, model: Denoiser, nfe: int) -> samplers.Plan:
    """The sampler of this student's method, `nfe` steps on a uniform grid."""
    rule = samplers.consistency if method_of(made.settings["method"]).jumps else samplers.ddim
    return rule.plan(model.schedule, grids.uniform(model.schedule, nfe))


def model_for(made: Run, nfe: int) -> Denoiser:
    """The student for this budget: that of the last stage, or of an earlier one that was made for more steps."""
    names = method_of(made.settings["method"]).stages(nfe)
    folder = made.path / names[-1] / "model"
    return load(folder) if folder.exists() else made.model()


def cost(made: Run) -> dict[str, Any]:
    """What a student costs, as cost.json of its run says: parameters, those in its newest checkpoint, the training.

    Returns:
        "parameters": in model/; "kept": in the newest checkpoint too, averages, second models and critics included;
        "train_seconds".
    """

    def count(path: Path) -> int:
        return sum(value.numel() for value in read_tensors(path).values())

    checkpoints = sorted(made.path.rglob("checkpoints/step-*"), key=lambda p: p.stat().st_mtime)
    newest = [] if not checkpoints else [p for p in checkpoints[-1].glob("*.safetensors") if p.stem != "optimizer"]
    return {
        "parameters": count(made.path / "model" / "model.safetensors"),
        "kept": sum(map(count, newest)),
        "train_seconds": made.train_seconds,
    }


def evaluate(
    made: Run, *, nfe: Sequence[int] = (1, 2, 4), seed: int = 1, by: tuple[Any, Any, Any] | None = None
) -> dict[str, Any]:
    """Measure a student of digits at several budgets, each enforced by counting; writes metrics.json.

    Args:
        by: of pictures that are no digits, a judge of labels as `metrics.Classifier`, and {"x", "label"} of real ones
            that the teacher was trained on, and of unseen ones.
    Returns:
        "cost", and by budget: "nfe" as counted, label_accuracy, frechet_ratio, recall (value, n, interval, how).
    Raises:
        ValueError: the student is no student of digits, and not `by`.
    """
    if made.settings.get("of") != "digits" and by is None:
        raise ValueError(f"{made.path} was distilled from a run of {made.settings.get('of')}: only digits are measured")
    result: dict[str, Any] = {"model_hash": made.model_hash, "seed": seed, "cost": cost(made)}
    judge, *sets = by or (digits.classifier(), data.digits("train"), data.digits("test"))
    for n in nfe:
        how = {"w": made.settings["w"], "sets": sets}
        result[str(n)] = measured(model_for(made, n), partial(plan, made), n, judge, seed, **how)
    write_json(made.path / "metrics.json", result)
    return result


def measured(
    model: Denoiser,
    of: Callable[[Denoiser, int], Any],
    nfe: int,
    judge: Any,
    seed: int,
    *,
    w: float = 1.0,
    sets: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Pictures of a model at one budget, against real ones; a student with guidance folded in is told w.

    Args:
        sets: {"x", "label"} of real pictures for training, and of unseen ones; by default digits.
    """
    real, unseen = sets or (data.digits("train"), data.digits("test"))
    told: dict[str, Any] = {"label": real["label"]} | ({"w": w} if "w" in model.conditions else {})
    n, asked = len(real["x"]), model.given(**told)
    with samplers.budget(asked, n, nfe) as spent:
        x = sample_many(asked, n, tuple(real["x"].shape[1:]), seed, sampler=of(model, nfe)).clamp(-1, 1)
    (read, mine), (_, theirs), (_, held_out) = judge.read(x), judge.read(real["x"]), judge.read(unseen["x"])
    space = f"{judge.features} features of a classifier of real pictures"
    hits = int((read == real["label"]).sum())
    found = {
        "label_accuracy": metrics.proportion(hits, n, "share of samples that the judge reads as the label asked for"),
        "frechet_ratio": metrics.frechet_ratio(mine, theirs, held_out, features=space),
        "recall": metrics.recall(mine, theirs, features=space),
        "memorised": metrics.memorised(x, real["x"], unseen["x"]),
    }
    return {"nfe": spent.nfe} | {name: value.to_json() for name, value in found.items()}
