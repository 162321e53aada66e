"""Text to image on the shapes world: captions in, pictures out, and judged by what the caption says.

A flow (velocity on the linear schedule) told words, trained on scenes that are drawn as they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import losses, metrics, nets
from suffuse.data.shapes import VOCABULARY, Scenes, captions
from suffuse.denoise import Denoiser
from suffuse.guidance import guide
from suffuse.nets.conditions import Condition
from suffuse.recipes.draw import sample_many
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import Fit, fit, save

__all__ = ["build", "probe", "train"]

SHAPE = (3, 32, 32)
WORDS = 24
"""The longest caption of the world has 23."""
STEPS: dict[str, int] = {"dit": 16_000, "unet": 12_000}
BATCH, LR, EMA, DROPOUT = 64, 1.5e-3, 0.999, 0.1
W, EVALUATIONS = 3.0, 20


def build(net: str = "dit") -> Denoiser:
    """The untrained model, which predicts the velocity and may be told a text: "dit" or "unet".

    Raises:
        ValueError: another name.
    """
    told: dict[str, Condition] = {"text": nets.Words(VOCABULARY, 192, layers=2)}
    if net == "dit":
        return Denoiser(nets.DiT(3, 4, 192, 6, 3, conditions=told), Linear(), predicts="velocity")
    if net == "unet":
        made = nets.UNet(3, width=64, multipliers=(1, 2, 3), blocks=1, attention=(1, 2), conditions=told)
        return Denoiser(made, Linear(), predicts="velocity")
    raise ValueError(f"net must be 'dit' or 'unet', got {net!r}")


def train(
    out: str | Path,
    *,
    net: str = "dit",
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = BATCH,
    lr: float = LR,
    ema: float = EMA,
    dropout: float = DROPOUT,
    compile: bool = False,
    watch_every: int = 1000,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train on scenes of the world with its kept-out combinations left out, and write a run folder.

    Args:
        out: the folder. net: "dit" or "unet". seed: of weights, scenes and noise.
        steps, batch_size, lr, ema, compile: as for `fit`. dropout: how often the caption is withheld.
        watch_every: steps between looks at the model, see `probe`.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    """
    out, steps = Path(out), steps or STEPS[net]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build(net)
    scenes, text = Scenes(seed), model.conditions["text"]

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        drawn = scenes[batch["item"]]
        told = {"x": drawn.images, "text": text.ids(drawn.captions, length=WORDS)}
        return losses.denoising(model, told, times=losses.logit_normal, dropout=dropout)

    done: Fit = fit(
        loss,
        {"item": torch.arange(steps * batch_size)},
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.01,
        optimizer="muon",
        ema=ema,
        decay=0.3,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "shapes", "net": net, "dropout": dropout},
        compile=compile,
        watch=partial(probe, text=text),
        watch_every=watch_every,
        log_every=50,
        progress=progress,
    )
    save(done.ema, out / "model")
    settings = {"net": net, "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema}
    made = Run(out, "shapes", SHAPE, settings | {"dropout": dropout}, round(done.seconds, 2))
    made.write()
    return made


def probe(model: Denoiser, *, text: nets.Words, n: int = 192, nfe: int = 10, seed: int = 7_000_003) -> dict[str, float]:
    """How far a model is: binding, by the loss under captions that are wrong in one way; and captions met.

    bind_NAME = loss with the wrong caption - loss with the true one, same picture, noise and times: above 0 once the
    model reads that from the caption. Wrong are the two objects' colours exchanged ("colour"), the two objects
    exchanged in place ("order"), the relation's axis turned ("axis").

    Args:
        model: what is trained. text: its condition. n: captions. nfe: calls for each picture. seed: of the scenes.
    Returns:
        bind_colour, bind_order, bind_axis; and of n captions with kept-out combinations, by the judge "use", the
        shares met: match (all that is said), shape, colour, relation.
    """
    scenes = Scenes(seed, counts=(0.0, 1.0), identical=0.0, full=True)(0, 2 * n)
    a, said = scenes.attributes, scenes.captions
    swapped = a.colour[:, [1, 0]]
    placed = replace(a, x=a.x[:, [1, 0]], y=a.y[:, [1, 0]])
    turned = replace(a, x=a.y, y=a.x)
    wrong = {
        "colour": scenes.say(replace(a, colour=swapped)),
        "order": scenes.say(placed),
        "axis": scenes.say(turned),
    }
    x0, eps = scenes.images, torch.randn_like(scenes.images)
    t = losses.logit_normal(len(x0), x0.device)

    def loss(told: list[str]) -> Tensor:
        parts = []
        for i in range(0, len(x0), 64):
            rows = slice(i, i + 64)
            alpha, sigma = model.schedule(t[rows], like=x0[rows])
            spoken = model.given(text=text.ids(told[rows], length=WORDS))
            out, _, _, row = spoken.output(alpha * x0[rows] + sigma * eps[rows], t[rows])
            parts.append((out - model.parameterization.write(x0[rows], eps[rows], row)).square().flatten(1).mean(1))
        return torch.cat(parts)

    true = loss(said)
    found = {}
    for name, told in wrong.items():
        differs = torch.tensor([a != b for a, b in zip(said, told, strict=True)])
        found[f"bind_{name}"] = (loss(told) - true)[differs].mean().item()
    asked = captions(n, seed, held_out=True)
    spoken = model.given(text=text.ids(asked, length=WORDS))
    x = sample_many(guide(spoken, model, W), n, SHAPE, seed, nfe=nfe).clamp(-1, 1)
    report = metrics.shapes.judge("use").report(asked, x)
    return found | {name: round(report[name].value, 4) for name in ("match", "shape", "colour", "relation")}
