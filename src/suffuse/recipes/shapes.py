"""Text to image on the shapes world: captions in, pictures out, and judged by what the caption says.

A flow (velocity on the linear schedule) told words, in latents 8 x 8 x 8 that say what is in a picture; scenes are
drawn as they are asked for. The judge in use, which says what the latents and the network's hidden tokens are to say,
was trained on every combination; neither is shown a scene with one kept out.

Rombach et al. 2022 (latents); Yao et al. 2025 and Yu et al. 2024 (what they say).
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse import losses, metrics, nets, pictures, samplers
from suffuse.data.shapes import CHANGES, COLOURS, SHAPES, VOCABULARY, Match, Scenes, captions, changed, held_out, parse
from suffuse.denoise import Denoiser
from suffuse.guidance import guide
from suffuse.nets.conditions import Condition
from suffuse.recipes import latents
from suffuse.recipes.draw import decoded, draw, encoded, recipe_of, sample_many, stamp
from suffuse.recipes.report import Page
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import Fit, alone, fit, save
from suffuse.training.codecs import load_codec
from suffuse.training.files import whole_folder, write_json, write_text

__all__ = ["build", "evaluate", "pictures_of", "probe", "sampled", "ship", "train"]

SIDE, WORDS = 32, 24
"""Of the pictures; of captions, the longest of scenes of two objects has 23."""
CODEC: dict[str, Any] = {
    "size": SIDE,
    "multipliers": (1, 2, 4),
    "batch_size": 32,
    "lr": 1.5e-3,
    "kl": 3e-3,
    "aligned": 0.1,
    "perturb": 0.3,
}
"""Of the autoencoder, see `latents.train_autoencoder`."""
STEPS: dict[str, int] = {"dit": 16_000, "unet": 12_000}
BATCH, LR, LR_MATRICES, EMA, DROPOUT = 64, 1.5e-3, 5e-3, 0.999, 0.1
NOISIER = 0.4
"""Mean of logit(t): flat regions keep their colour far into the noise, and only there a caption tells anything new."""
ALIGNED = {"dit": ("blocks.2", 192), "unet": ("up.2", 96)}
"""The module that learns to say what the judge in use sees in each of its 8 x 8 cells, and its channels."""
SAMPLING: dict[str, Any] = {"w": 3.5, "between": (0.0, 0.95), "sampler": "ddpm"}
"""Noise on the way mends what few steps get wrong. A guided first step, from noise alone, loses objects."""
EVALUATIONS, ASKED = 20, 2000
ASKS = {
    "held_out": ("Captions of two objects with at least one kept-out combination, w={w:g}", True, True),
    "in_distribution": ("Captions of two objects without one, w={w:g}", False, True),
    "unguided": ("Captions with a kept-out combination, without guidance", True, False),
}
"""What `evaluate` asks for: in words, whether a kept-out combination is in every caption, whether it is guided."""
PROMPTS = (
    "a small red circle above a large blue square on a yellow background",
    "a green star to the left of a pink heart",
    "a small white ring inside a large purple circle",
    "two orange triangles on a black background",
    "a large outlined cyan cross on a striped white background",
    "a yellow figure to the right of a red triangle",
    "a medium filled blue heart on a dotted pink background",
    "an outlined green square below a small purple star on a gradient cyan background",
)
PROBED = ("match", "shape", "colour", "relation")
MEANING = {
    "match": "1 is best: everything that the caption says holds in the picture.",
    "relation": "the first object is where the caption puts it, seen from the second.",
}


def build(net: str = "dit", latent: int = 8) -> Denoiser:
    """The untrained model, which predicts the velocity and may be told a text: "dit" or "unet".

    Args:
        net: which. latent: channels of the latents.
    Raises:
        ValueError: another name.
    """
    told: dict[str, Condition] = {"text": nets.Words(VOCABULARY, 192, layers=2, longest=WORDS)}
    if net == "dit":
        made: nn.Module = nets.DiT(latent, 1, 192, 6, 3, conditions=told)
    elif net == "unet":
        made = nets.UNet(latent, 96, (1, 1), 1, (0, 1), conditions=told)
    else:
        raise _unknown(net)
    return Denoiser(made, Linear(), predicts="velocity", shape=(latent, SIDE // 4, SIDE // 4))


def _unknown(net: str) -> ValueError:
    return ValueError(f"net must be 'dit' or 'unet', got {net!r}")


def train(
    out: str | Path,
    *,
    net: str = "dit",
    codec: str | Path | None = None,
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
        out: the folder. net: "dit" or "unet".
        codec: the run of `latents.train_autoencoder`; None trains one first, in out/autoencoder.
        seed: of weights, scenes and noise.
        steps, batch_size, lr, ema, compile: as for `fit`. dropout: how often the caption is withheld.
        watch_every: steps between looks at the model, see `probe`; 0 is never.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    Raises:
        ValueError: another net, steps below 1, and as for `fit`.
    """
    if net not in STEPS:
        raise _unknown(net)
    out, steps = Path(out), STEPS[net] if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    source = out / "autoencoder" if codec is None else Path(codec)
    if codec is None and (overwrite or not (source / "run.json").exists()):
        how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "progress": progress}
        latents.train_autoencoder(source, seed=seed, **CODEC, **how)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        made = load_codec(source / "codec")
        model = build(net, made.net.latent)
        model.codec = made
        loss = _Loss(seed + 1, dropout, model, ALIGNED[net])

    done: Fit = fit(
        loss,
        {"item": torch.arange(steps * batch_size)},
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        lr_matrices=lr * LR_MATRICES / LR,
        weight_decay=0.01,
        optimizer="muon",
        ema=ema,
        decay=0.3,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={
            "recipe": "shapes",
            "net": net,
            "dropout": dropout,
            "noisier": NOISIER,
            "aligned": list(ALIGNED[net]),
            "scale": made.scale,
        },
        compile=compile,
        watch=partial(probe, text=model.conditions["text"]) if watch_every else None,
        watch_every=watch_every,
        log_every=50,
        progress=progress,
    )
    save(done.ema, out / "model")
    settings = {"net": net, "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema}
    shape = latents.shape_of(made, SIDE)
    finished = Run(out, "shapes", shape, settings | {"dropout": dropout} | SAMPLING, round(done.seconds, 2))
    finished.write()
    return finished


class _Loss(nn.Module):
    """Draw the scenes asked for, and denoise their latents told their captions.

    Hidden tokens are aligned to what the judge in use sees in the scene.

    Args:
        seed: of the scenes. dropout: how often the caption is withheld. model: with its codec and text.
        aligned: path of the aligned module, and its channels.
    """

    def __init__(self, seed: int, dropout: float, model: Denoiser, aligned: tuple[str, int]) -> None:
        super().__init__()
        self.scenes = Scenes(seed)
        sees, features = latents.seen()
        loss = partial(losses.denoising, times=partial(losses.logit_normal, mean=NOISIER), dropout=dropout)
        self.aligned = losses.Alignment(loss, sees, *aligned, features)
        assert model.codec is not None
        # In a tuple, out of the reach of parameters(): the codec is not trained.
        self._codec = (model.codec, model.conditions["text"])

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """(B,) losses of the scenes numbered batch["item"]."""
        drawn, (codec, text) = self.scenes[batch["item"]], self._codec
        with torch.no_grad():
            z = codec.encode(drawn.images, int(batch["item"][0]))
        return self.aligned(model, {"x": z, "text": text.ids(drawn.captions, length=WORDS)}, of=drawn.images)


def sampled(
    spoken: Denoiser,
    base: Denoiser,
    n: int,
    seed: int,
    *,
    nfe: int,
    w: float = SAMPLING["w"],
    progress: str | None = None,
) -> Tensor:
    """n pictures or latents as models of this world are sampled, see `SAMPLING`: as is said, guided from the base."""
    denoiser = spoken if w == 1 else guide(spoken, base, w, between=SAMPLING["between"])
    rule = samplers.rules()[SAMPLING["sampler"]]()
    return sample_many(denoiser, n, base.shape or (), seed, progress=progress, sampler=rule, nfe=nfe)


def evaluate(
    made: Run,
    out: Path,
    *,
    n: int = ASKED,
    nfe: int = EVALUATIONS,
    w: float = SAMPLING["w"],
    seed: int = latents.FRESH,
) -> Any:
    """Measure by the held-out judge what share of pictures shows all that its caption says.

    Several processes share the sampling; then the first goes on alone.

    Args:
        made: the run. out: folder for metrics.json and failures.png. n: captions of each kind.
        nfe: network evaluations for a picture. w: guidance. seed: of captions and noise, none that a training draws.
    Returns:
        For each of `ASKS` and for "real", the real scenes of the kept-out captions: "asked", what it is, and
        "measured", the share for "match" (all that is said) and by attribute. "combinations": "match" by kept-out
        combination. "failures": the first captions not met, and what was wrong.
    """
    model, judge = made.model(), metrics.shapes.judge("held_out")
    text = model.conditions["text"]
    result: dict[str, Any] = {"n": n, "nfe": nfe} | SAMPLING | {"w": w, "seed": seed, "model_hash": made.model_hash}
    began, drawn = time.monotonic(), {}
    for name, (_, held, guided) in ASKS.items():
        asked = captions(n, seed, held_out=held)
        spoken = model.given(text=text.ids(asked, length=WORDS))
        z = sampled(spoken, model, n, seed, w=w if guided else 1, nfe=nfe, progress=name)
        drawn[name] = asked, decoded(model, z)
    result["pictures_per_second"] = round(len(ASKS) * n / (time.monotonic() - began), 1)
    alone()
    real = Scenes(seed, counts=(0.0, 1.0), held_out=True, identical=0.0, full=True)(0, n)
    title = "Real scenes of the captions with kept-out combinations: the judge's own ceiling"
    result["real"] = _told(title, judge.report(real.captions, real.images))
    for name, (title, _, _) in ASKS.items():
        asked, x = drawn[name]
        told = judge.match(asked, x)
        result[name] = _told(title.format(w=w), judge.shares(told))
        if name == "held_out":
            result["combinations"] = _combinations(asked, told)
            result["failures"] = _failures(asked, x, told, out, stamp(made) | {"seed": seed, "w": w, "nfe": nfe})
    write_json(out / "metrics.json", result)
    return result


def _told(title: str, measured: dict[str, metrics.Measured]) -> dict[str, Any]:
    return {"asked": title, "measured": {name: value.to_json() for name, value in measured.items()}}


def _combinations(asked: list[str], told: Match) -> dict[str, Any]:
    """Share of captions met, by kept-out combination that they name."""
    spec, met = parse(asked), told.all
    found = {}
    for shape, colour in itertools.product(range(len(SHAPES)), range(len(COLOURS))):
        if held_out(torch.tensor(shape), torch.tensor(colour)):
            names = ((spec.shape == shape) & (spec.colour == colour)).any(1)
            if hits := int(names.sum()):
                how = "share of captions with this combination of which everything holds"
                share = metrics.proportion(int((met & names).sum()), hits, how)
                found[f"{COLOURS[colour]} {SHAPES[shape]}"] = share.to_json()
    return found


def _failures(asked: list[str], x: Tensor, told: Match, out: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Draw the first pictures that fail, and say what is wrong with each."""
    rows = (~told.all).nonzero()[:, 0].tolist()[:32]
    if rows:
        pictures.save_png(pictures.grid(x[rows], 8, scale=3, gap=2), out / "failures.png", about)
    wrong = [[name for name, right in told.right.items() if not bool(right[i])] for i in rows]
    return [{"number": i, "caption": asked[i], "wrong": names} for i, names in zip(rows, wrong, strict=True)]


def pictures_of(made: Run, result: dict[str, Any], out: Path, *, each: int = 8, seed: int = 0) -> Path:
    """Write samples.png with `each` pictures a caption, report.html, and curve.png where it was looked at in training.

    Returns:
        The report's path.
    """
    asked = [p for p in PROMPTS for _ in range(each)]
    how = {name: result[name] for name in SAMPLING}
    recipe = recipe_of(made.path, prompt=asked, n=len(asked), **how, seed=seed)
    draw(recipe, out / "samples.png")
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "match" in line]
    settings = ", ".join(f"{k} {v}" for k, v in made.settings.items())
    page = Page(
        "shapes: text to image, judged by what the captions say",
        f"Trained in {made.train_seconds / 3600:.1f} h ({settings}). Each picture takes {result['nfe']} network "
        f"evaluations ({how['sampler']}, w={how['w']:g} at times {how['between'][0]:g} to {how['between'][1]:g}); "
        f"{result['pictures_per_second']:.1f} pictures a second.",
    )
    page.section("Samples", f"{each} pictures in turn for each caption:")
    page.table(["row", "caption"], [(str(i + 1), p) for i, p in enumerate(PROMPTS)])
    page.picture(out / "samples.png", "pictures of each caption")
    for name in (*ASKS, "real"):
        page.section(result[name]["asked"])
        page.measurements(
            (k, m, MEANING.get(k, "as said for every object")) for k, m in result[name]["measured"].items()
        )
    page.section("By kept-out combination", "Pairs of colour and shape that no training scene showed.")
    page.measurements((k, m, "everything in the caption holds") for k, m in result["combinations"].items())
    if result["failures"]:
        page.section("Failures", "The first captions with a kept-out combination that were not met, eight in a row.")
        page.picture(out / "failures.png", "pictures that do not show what their caption says")
        rows = ((str(k + 1), f["caption"], ", ".join(f["wrong"])) for k, f in enumerate(result["failures"]))
        page.table(["picture", "caption", "wrong"], rows)
    if looks:
        title = "share of kept-out captions met (judge in use, 10 evaluations)"
        pictures.curves(looks, PROBED, out / "curve.png", stamp(made), title)
        page.section("Training", "Seen while it trained, on other captions than above.")
        page.picture(out / "curve.png", "accuracy against pictures seen", plot=True)
    page.note(f"model {result['model_hash']}, evaluated with seed {result['seed']}")
    return page.write(out / "report.html")


def probe(model: Denoiser, *, text: nets.Words, n: int = 192, nfe: int = 10, seed: int = 7_000_003) -> dict[str, float]:
    """How far a model is: binding, by the loss under captions that are wrong in one way; and captions met.

    bind_NAME = loss with the wrong caption - loss with the true one, same picture, noise and times: above 0 once the
    model reads that from the caption; the ways are those of `data.shapes.changed`.

    Args:
        model: what is trained. text: its condition. n: captions. nfe: calls for each picture. seed: of the scenes.
    Returns:
        bind_colour, bind_order, bind_axis; and of n captions with kept-out combinations, by the judge "use", the
        shares met: match (all that is said), shape, colour, relation.
    """
    scenes = Scenes(seed, counts=(0.0, 1.0), identical=0.0, full=True)(0, 2 * n)
    x0 = encoded(model, scenes.images, seed)
    eps = torch.randn_like(x0)
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

    true, found = loss(scenes.captions), {}
    for name in CHANGES:
        told, wrong = changed(scenes, name)
        found[f"bind_{name}"] = (loss(told) - true)[wrong].mean().item()
    asked = captions(n, seed, held_out=True)
    spoken = model.given(text=text.ids(asked, length=WORDS))
    x = decoded(model, sampled(spoken, model, n, seed, nfe=nfe))
    report = metrics.shapes.judge("use").report(asked, x)
    return found | {name: round(report[name].value, 4) for name in PROBED}


def ship(made: Run, folder: str | Path) -> None:
    """Write a run as the zoo keeps it: weights in bf16, how it was made, and the curve of what was looked at."""
    model: Any = made.model()
    lines = (made.path / "metrics.jsonl").read_text().splitlines()
    model.net.bfloat16()
    model.codec.net.bfloat16()
    with whole_folder(Path(folder)) as work:
        save(model, work / "model")
        replace(made, path=work).write()
        write_text(work / "metrics.jsonl", "".join(f"{line}\n" for line in lines if "match" in json.loads(line)))
