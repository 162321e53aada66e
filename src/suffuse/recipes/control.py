"""Controls on the shapes world: trained beside any run of it, told edges, poses and more, and judged by obedience.

Every scene is drawn as it is asked for. Half of the time the caption is withheld and the picture that controls is not:
that is control without a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import adapters, control, losses, metrics
from suffuse.data.shapes import JOINTS, SHAPES, Batch, Scenes
from suffuse.denoise import Denoiser
from suffuse.recipes import latents, shapes
from suffuse.recipes.draw import decoded, encoded, picture_shape, read_picture
from suffuse.recipes.run import Run
from suffuse.training import Fit, fit
from suffuse.training.codecs import load_codec
from suffuse.training.described import fill
from suffuse.training.files import (
    ModelFileError,
    read_json,
    read_tensors,
    whole_folder,
    write_json,
    write_tensors,
    write_text,
)

__all__ = ["HINTS", "METHODS", "base_of", "draw", "hint", "opened", "reader", "scenes", "ship", "steered_by", "train"]

STEPS, BATCH, LR, EMA = 4000, 32, 5e-4, 0.995
FIGURE, TRIES = SHAPES.index("figure"), 16
HINTS: dict[str, tuple[int, Callable[[Batch], Tensor]]] = {
    "edges": (1, lambda b: control.canny(b.images)),
    "soft_edges": (1, lambda b: control.soft_edges(b.images)),
    "scribble": (1, lambda b: control.scribble(b.edges)),
    "pose": (3, lambda b: control.skeleton(b.keypoints, tuple(b.images.shape[2:]))),  # type: ignore[arg-type]
    "depth": (1, lambda b: b.depth),
    "masks": (2, lambda b: control.masks(b.masks)),
}
"""What a scene tells a control: channels, and how it is read, in [0, 1]."""
SEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "edges": control.canny,
    "soft_edges": control.soft_edges,
    "scribble": lambda x: control.scribble(control.canny(x)),
}
"""How a control is told of any picture. Others are told what has been drawn for them."""
METHODS: dict[str, Callable[..., Denoiser]] = {
    "controlnet": control.controlnet,
    "t2i": control.t2i_adapter,
    "concatenated": control.concatenated,
}


def base_of(path: str | Path) -> tuple[Denoiser, str]:
    """The model of a run, and what identifies its weights; of a training that goes on, its newest averaged weights.

    Args:
        path: a run folder of the shapes world, finished or with checkpoints, or the name of one that ships.
    Raises:
        ModelFileError: there is neither.
    """
    path = Path(path)
    kept = sorted((path / "checkpoints").glob("step-*")) if (path / "checkpoints").is_dir() else []
    if kept and not (path / "run.json").exists():
        about = read_json(kept[-1] / "state.json")
        codec = load_codec(path / "autoencoder" / "codec")
        model = shapes.build(about["settings"].get("net", "dit"), codec.net.latent)
        model.codec, model.shape = codec, latents.shape_of(codec, shapes.SIDE)
        fill(model.net, read_tensors(kept[-1] / "ema.safetensors"), kept[-1])  # type: ignore[arg-type]
        weights = kept[-1].name
    else:
        made = Run.open(path)
        model, weights = made.model(), made.model_hash
    net: Any = model.net
    net.eval().requires_grad_(False)
    return model, weights


def scenes(kind: str, seed: int, index: Tensor) -> Batch:
    """The scenes of these numbers; for "pose" each is the first of a few in which there is a figure."""
    world = Scenes(seed)
    if kind != "pose":
        return world[index]
    candidates = (TRIES * index[:, None] + torch.arange(TRIES)).flatten()
    has = (world[candidates].attributes.shape == FIGURE).any(1).view(-1, TRIES)
    return world[TRIES * index + has.to(torch.int8).argmax(1)]


def hint(kind: str, batch: Batch) -> Tensor:
    """What the control is told of scenes, (B, channels, H, W) in [-1, 1]."""
    return 2 * HINTS[kind][1](batch).float() - 1


class _Loss(nn.Module):
    """Draw scenes, read from them what the control is told, withhold half of the captions, denoise."""

    def __init__(self, model: Denoiser, kind: str, seed: int, silent: float) -> None:
        super().__init__()
        self.of = [model]  # in a list it is no part of this, which is trained
        self.kind, self.seed, self.silent = kind, seed, silent

    def forward(self, learned: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) losses of the scenes numbered batch["item"]."""
        drawn, model = scenes(self.kind, self.seed, batch["item"]), self.of[0]
        words: Any = model.conditions["text"]
        text = words.ids(drawn.captions, length=shapes.WORDS)
        text[torch.rand(len(text)) < self.silent] = -1
        x = encoded(model, drawn.images, int(batch["item"][0]))
        told = {"x": x, "text": text, self.kind: hint(self.kind, drawn)}
        return losses.denoising(model, told, times=partial(losses.logit_normal, mean=shapes.NOISIER))


def train(
    base: str | Path,
    out: str | Path,
    *,
    kind: str = "edges",
    method: str = "controlnet",
    steps: int = STEPS,
    batch_size: int = BATCH,
    lr: float = LR,
    ema: float = EMA,
    silent: float = 0.5,
    seed: int = 0,
    watch_every: int = 250,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train a control beside a run, whose weights stay as they are.

    Args:
        base: see `base_of`. out: the folder; `out/control` is what `sf.control.load_control` reads.
        kind: of `HINTS`, and the condition's name. method: of `METHODS`.
        steps, batch_size, lr, ema: as for `fit`. silent: how often the caption is withheld. seed: of scenes and noise.
        watch_every: steps between looks at it: F1 of the edges of a few pictures with their scenes'; 0 is never.
        resume, overwrite: as for `fit`.
    Raises:
        ValueError: an unknown kind or method.
    """
    for name, known, got in (("kind", HINTS, kind), ("method", METHODS, method)):
        if got not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {got!r}")
    out, (model, weights) = Path(out), base_of(base)
    model.net.float()  # type: ignore[attr-defined]  # weights of a model that ships are bf16, too coarse to learn in
    about = {"base": str(base), "weights": weights, "kind": kind, "method": method, "silent": silent}
    steered = _new(model, method, kind, seed)
    seen = _new(model, method, kind, seed)  # filled with the averages, to look at

    def watch(average: Any) -> dict[str, float]:
        average.into(seen)
        return {"f1": _glimpse(seen, kind)}

    done: Fit = fit(
        _Loss(steered, kind, seed, silent),
        {"item": torch.arange(steps * batch_size)},
        adapters.Learned(steered),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.01,
        ema=ema,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "control", **about},
        watch=watch if watch_every else None,
        watch_every=watch_every,
        log_every=25,
        progress=progress,
    )
    done.ema.into(steered)
    control.save_control(steered, out / "control")
    made = Run(
        out,
        "control",
        model.shape or (),
        {**about, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed},
        round(done.seconds, 2),
    )
    made.write()
    return made


def _new(model: Denoiser, method: str, kind: str, seed: int) -> Denoiser:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return METHODS[method](model, HINTS[kind][0], name=kind)


def opened(*runs: str | Path, base: str | Path | None = None) -> Denoiser:
    """The base with the controls of these runs, told under the names of their kinds.

    Args:
        base: where it is now, by default where it was.
    Raises:
        ModelFileError: no control; a base with other weights than it was trained beside.
    """
    model = None
    for path in runs:
        made = Run.open(path)
        if made.recipe != "control":
            raise ModelFileError(f"{path} is no control, it is a run of {made.recipe}")
        if model is None:
            model, weights = base_of(base or made.settings["base"])
            if weights != made.settings["weights"]:
                raise ModelFileError(f"{path} was trained beside {made.settings['weights']}, the base is now {weights}")
        model = control.load_control(model, made.path / "control")
    if model is None:
        raise ValueError("name at least one run of a control")
    return model


def ship(made: Run, folder: str | Path) -> None:
    """Write a control as the zoo keeps it: weights in bf16, how it was made, and the curve of its obedience."""
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    learned = read_tensors(made.path / "control" / "control.safetensors")
    with whole_folder(Path(folder)) as work:
        (work / "control").mkdir()
        write_json(work / "control" / "control.json", read_json(made.path / "control" / "control.json"))
        write_tensors(work / "control" / "control.safetensors", {k: v.bfloat16() for k, v in learned.items()})
        replace(made, path=work).write()
        write_text(work / "metrics.jsonl", "".join(f"{line}\n" for line in lines if "f1" in json.loads(line)))


def steered_by(
    base: Run,
    runs: Sequence[str | Path],
    files: Sequence[str | Path],
    n: int,
    *,
    strength: Sequence[float] = (),
    acting: Sequence[float] = (0.0, 1.0),
    drawn: bool = False,
) -> Denoiser:
    """A run's model with controls, told what is in picture files, for n rows.

    Args:
        base: the run that the controls were trained beside. runs: theirs. files: a picture for each.
        strength: of each, or of all, see `control.Hint`. acting: times between which they act.
        drawn: the pictures show edges already, white on black; otherwise those are read from them.
    Raises:
        ValueError: another number of pictures or strengths; a kind that no picture file holds; and as for `opened`.
    """
    for name, values, allowed in (("--hint", files, {len(runs)}), ("--strength", strength, {0, 1, len(runs)})):
        if len(values) not in allowed:
            raise ValueError(f"{name} has {len(values)} values for {len(runs)} controls: give one for each")
    model = opened(*runs, base=base.path)
    given, strength = {}, [*strength] or [1.0]
    side = picture_shape(model, base.shape)[1]
    for i, (run, file) in enumerate(zip(runs, files, strict=True)):
        kind = Run.open(run).settings["kind"]
        channels = HINTS[kind][0]
        if channels not in (1, 3):
            raise ValueError(f"{kind} are {channels} channels, which no picture file holds: use suffuse.control")
        if kind in SEEN and not drawn:
            picture = 2 * SEEN[kind](read_picture(Path(file), side, 3)) - 1
        else:
            picture = read_picture(Path(file), side, channels)
        amount = float(strength[i % len(strength)])
        given[kind] = control.Hint(picture.expand(n, -1, -1, -1), amount, (acting[0], acting[1]))
    return model.given(**given)


def draw(
    model: Denoiser,
    batch: Batch,
    *,
    told: Mapping[str, Any],
    text: bool,
    w: float,
    nfe: int,
    seed: int,
    both: bool = False,
) -> Tensor:
    """One picture for each scene, told its caption or none, guided by w; `told` on both sides, or guided too (`both`).

    What is guided too is obeyed more: towards caption and picture, away from the base that is told neither.
    """
    words: Any = model.conditions["text"]
    steered = model.given(**told)
    spoken = steered.given(text=words.ids(batch.captions, length=shapes.WORDS)) if text else steered
    base = model if both else steered
    return decoded(model, shapes.sampled(spoken, base, len(batch), seed, w=w if text or both else 1, nfe=nfe))


def _glimpse(model: Denoiser, kind: str, n: int = 32, nfe: int = 8) -> float:
    """Mean F1 of the edges of a few pictures against those of the scenes, without captions."""
    batch = scenes(kind, 7_000_003, torch.arange(n))
    x = draw(model, batch, told={kind: hint(kind, batch)}, text=False, w=1.0, nfe=nfe, seed=3)
    return round(control.edge_f1(control.canny(x), control.canny(batch.images)).mean().item(), 4)


class Reader(nn.Module):
    """Where the joints of the one figure of a picture are: heat maps at full size, and their centres of mass."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()

        def layer(a: int, b: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())

        self.near = layer(3, width)
        self.middle = nn.Sequential(layer(width, 2 * width, 2), layer(2 * width, 2 * width))
        self.deep = nn.Sequential(
            layer(2 * width, 2 * width, 2), layer(2 * width, 2 * width), layer(2 * width, 2 * width)
        )
        self.out = nn.Sequential(layer(5 * width, width), nn.Conv2d(width, len(JOINTS), 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 13, 2), x and y in pixels."""
        near = self.near(x)
        half = self.middle(near)
        parts = [F.interpolate(v, size=x.shape[2:], mode="bilinear") for v in (half, self.deep(half))]
        heat = self.out(torch.cat([near, *parts], 1)).flatten(2).softmax(-1).view(len(x), -1, *x.shape[2:])
        grid = [torch.arange(n, device=x.device) + 0.5 for n in x.shape[2:]]
        return torch.stack([(heat.sum(2) * grid[1]).sum(-1), (heat.sum(3) * grid[0]).sum(-1)], -1)


def alone(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which scenes have exactly one figure (B,), and the joints of the first one (B, 13, 2)."""
    figures = batch.attributes.shape == FIGURE
    first = figures.to(torch.int8).argmax(1)
    return figures.sum(1) == 1, batch.keypoints[torch.arange(len(first)), first]


def reader(
    out: str | Path, *, steps: int = 800, batch_size: int = 48, seed: int = 11, resume: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The network that reads joints, trained where `out` holds none yet, and what it reaches on real scenes.

    Returns:
        The network; {"error": mean error in pixels, "within": share of figures within one pixel}, measured.
    """
    out = Path(out)
    net: Any = Reader()
    if not (out / "reader.safetensors").exists():

        def loss(net: Any, batch: Mapping[str, Tensor]) -> Tensor:
            drawn = scenes("pose", seed, batch["item"])
            one, wanted = alone(drawn)
            error = (net(drawn.images) - wanted.nan_to_num(0.0)).square().sum(-1).add(1e-4).sqrt().mean(-1)
            return error * one

        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            net = Reader()
        data = {"item": torch.arange(steps * batch_size)}
        done = fit(
            loss, data, net, steps=steps, batch_size=batch_size, lr=2e-3, ema=0.99, seed=seed, out=out, resume=resume
        )
        write_tensors(out / "reader.safetensors", done.ema.state_dict())
    fill(net, read_tensors(out / "reader.safetensors"), out)
    net.eval().requires_grad_(False)
    batch = scenes("pose", 99, torch.arange(600))
    one, wanted = alone(batch)
    with torch.no_grad():
        error = control.joint_error(torch.cat([net(x) for x in batch.images.split(100)]), wanted)[one]
    how = "of real scenes with one figure, read by the reader"
    told = {
        "error": metrics.mean(error, f"mean joint error in pixels {how}").to_json(),
        "within": metrics.proportion(int((error <= 1).sum()), len(error), f"share within 1 pixel {how}").to_json(),
    }
    write_json(out / "reader.json", told)
    return net, told
