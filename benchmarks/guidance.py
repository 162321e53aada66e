"""Every guidance technique, accuracy against diversity: `python benchmarks/guidance.py` writes docs/guidance.md.

python benchmarks/guidance.py                        everything but shapes: about 15 minutes of one core
python benchmarks/guidance.py fractal                one part: exact, gradient, fractal, digits, steps, cost, shapes
python benchmarks/guidance.py shapes --weak runs/shapes_early        the model that ships, and a weaker one, of
    shapes.train("runs/shapes_early", codec=zoo.path("shapes") / "model", steps=1600), for autoguidance

Numbers are kept in docs/benchmarks/guidance.json as they are measured, and not measured again (--fresh does); small
models that are trained for this are kept in runs/guidance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidance_worlds as worlds
import suffuse as sf
from guidance_worlds import World, batches, drawn
from suffuse import guidance, pictures, samplers
from suffuse.training.files import write_json, write_text

SCALES, CFGPP, PARTICLES = (1.0, 1.5, 2.0, 3.0, 5.0), (0.05, 0.1, 0.2, 0.4), 4
WORLDS = {"fractal": worlds.fractal, "digits": worlds.of_digits, "shapes": worlds.of_shapes}
REST = {"exact": worlds.exact, "gradient": worlds.gradient, "steps": worlds.steps, "cost": worlds.cost}
DOCS = Path("docs")
KEPT = DOCS / "benchmarks/guidance.json"


def techniques(world: World) -> dict[str, Callable[[float], Any]]:
    """w -> a denoiser, for everything that this world has what it needs for; at w = 1 all are the base."""
    pos, neg, o = world.pos, world.neg, world.options
    made: dict[str, Callable[[float], Any]] = {"guide": lambda w: guidance.guide(pos, neg, w)}
    for low, high in o.get("intervals", ((0.25, 0.75), (0.0, 0.6), (0.4, 0.9))):
        between = (low, high)
        made[f"guide, between {low:g} and {high:g}"] = partial(
            lambda w, b: guidance.guide(pos, neg, w, between=b), b=between
        )
    if world.weak is not None:
        made["autoguidance"] = lambda w: guidance.guide(pos, world.weak, w)
    made |= {
        "apg": lambda w: guidance.apg(pos, neg, w),
        "apg, norm": lambda w: guidance.apg(pos, neg, w, beta=0.0, norm=o.get("norm", 0.5)),
        "cfg_zero": lambda w: guidance.cfg_zero(pos, neg, w),
        "rescale": lambda w: guidance.rescale(guidance.guide(pos, neg, w), 0.7),
    }
    if o.get("limit"):
        made["threshold"] = lambda w: guidance.threshold(guidance.guide(pos, neg, w), 99.0, limit=o["limit"])
    if o.get("attention"):
        made["pag"] = lambda w: guidance.pag(pos, w)
    if world.judge is not None:
        made["classifier"] = lambda w: guidance.classifier(pos, world.judge, world.label, w - 1)
    return made


def steered(world: World, w: float) -> Tensor:
    """One of `PARTICLES` for each row, by the reward w - 1 times."""
    parts, k = [], PARTICLES
    assert world.reward is not None
    for rows in batches(world.n, 240 // k):
        noise = sf.noise(((rows.stop - rows.start) * k, *world.shape), world.seed, first=rows.start * k)
        each = torch.arange(rows.start, rows.stop).repeat_interleave(k)
        reward = partial(world.reward, rows=each)
        x = guidance.steer(
            world.pos.rows(each),
            reward,
            noise,
            particles=k,
            lam=w - 1,
            steps=2 * world.nfe,
            seed=world.seed,
            first=rows.start * k,
        )
        parts.append(x[::k])
    return torch.cat(parts)


def swept(world: World, found: dict[str, Any], keep: Callable[[], None]) -> None:
    """Fill {technique: [{w, accuracy, recall, ...}]}, as far as it is empty."""

    def measured(technique: str, w: float, act: Callable[[], Tensor]) -> None:
        rows = found.setdefault(technique, [])
        if any(row["w"] == w for row in rows):
            return
        began = time.process_time()
        same = [row for others in found.values() for row in others if row["w"] == 1]
        rows.append({"w": w} | (same[0] | {"w": w} if w == 1 and same else world.measure(act())))
        keep()
        said = json.dumps({k: round(v, 4) for k, v in rows[-1].items()})
        print(technique, said, f"{time.process_time() - began:.0f} s", flush=True)

    made = techniques(world)
    for w in sorted(SCALES, key=lambda w: (w != 1, abs(w - 3))):
        for technique, make in made.items():
            measured(technique, w, lambda make=make, w=w: drawn(world, make(w)))
    for w in CFGPP:
        measured("cfgpp", w, partial(drawn, world, guidance.guide(world.pos, world.neg, w), sampler=samplers.cfgpp))
    if world.reward is not None:
        for w in SCALES:
            measured("steer", w, partial(steered, world, w))


# -- the page

SAID = {
    "guide": "Classifier-free guidance: the default, and the reference of this page.",
    "guide, between": "In a limited interval of times: less diversity lost, fewer double evaluations.",
    "autoguidance": "Away from a weaker model told the same: repairs quality without pushing to the class's far side.",
    "apg": "Projected: for large w, where CFG saturates.",
    "apg, norm": "Its push limited in length and without momentum.",
    "cfg_zero": "For flows whose negative is poor, early in training or near t = 1.",
    "rescale": "For pictures overexposed by a large w; not for data whose samples are a few numbers.",
    "threshold": "For pixels at a large w; not for latents.",
    "pag": "Needs no condition and no second model, but attention.",
    "classifier": "For a model without the condition, or a label it was not trained with; exact at s = w - 1 = 1 only.",
    "steer": "For a reward without a gradient, and where p(x) p(y|x)^s itself is wanted; costs its particles.",
    "cfgpp": "CFG++ (a sampler), its own small scales.",
}


def known() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def put(part: str, value: Any) -> None:
    """Keep one part; another command may have kept others in the meantime."""
    write_json(KEPT, known() | {part: value})


def between(rows: list[dict[str, float]], accuracy: float) -> float | None:
    """The best recall at this accuracy, along the line through neighbouring scales; None where it is not reached."""
    found = []
    rows = sorted(rows, key=lambda r: r["w"])
    for a, b in zip(rows, rows[1:], strict=False):
        low, high = sorted((a, b), key=lambda r: r["accuracy"])
        if low["accuracy"] <= accuracy <= high["accuracy"]:
            share = (accuracy - low["accuracy"]) / max(high["accuracy"] - low["accuracy"], 1e-12)
            found.append(low["recall"] + share * (high["recall"] - low["recall"]))
    return max(found, default=None)


def verdict(rows: dict[str, list[dict[str, float]]]) -> str:
    """Where plain CFG does not trade recall for accuracy, and who has more recall at its accuracy."""
    base = sorted(rows["guide"], key=lambda r: r["w"])
    words = []
    for name, way in (("accuracy", 1), ("recall", -1)):
        pairs = itertools.pairwise(base)
        wrong = [f"{a['w']:g} to {b['w']:g}" for a, b in pairs if way * (b[name] - a[name]) < 0]
        does = "rises" if way > 0 else "falls"
        words.append(f"its {name} {does} over w" + (f", but not from {', '.join(wrong)}" if wrong else " throughout"))
    found = []
    for name in (k for k in rows if k.startswith("guide, between") or k == "autoguidance"):
        at = [(r["w"], r["recall"], between(rows[name], r["accuracy"])) for r in base if r["w"] > 1]
        told = ", ".join(f"{got - own:+.3f} at its w = {w:g}" for w, own, got in at if got is not None)
        found.append(f"{name}: {told or 'reaches none of its accuracies'}")
    return f"Plain CFG: {'; '.join(words)}. Recall over CFG's, at CFG's accuracy: {'; '.join(found)}."


def figure(part: str, kept: dict[str, Any]) -> None:
    """A panel for each technique, with CFG behind it in grey."""
    from matplotlib.figure import Figure

    rows, columns = kept["rows"], 4
    high = -(-len(rows) // columns)
    sheet = Figure(figsize=(3 * columns, 2.5 * high), layout="constrained")
    grid = sheet.subplots(high, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, points) in zip(grid, rows.items(), strict=False):
        for line, colour, width in ((rows["guide"], "0.7", 1), (points, "#2a6f97", 1.6)):
            line = sorted(line, key=lambda r: r["w"])
            axes.plot([r["recall"] for r in line], [r["accuracy"] for r in line], "o-", color=colour, lw=width, ms=3)
        for r in points:
            axes.annotate(
                f"{r['w']:g}", (r["recall"], r["accuracy"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in grid[len(rows) :]:
        axes.set_visible(False)
    sheet.supxlabel("recall", fontsize=9)
    sheet.supylabel("accuracy", fontsize=9)
    pictures.save_figure(sheet, DOCS / f"images/guidance_{part}.png", dpi=90)


TITLES = {
    "fractal": "Branches in the plane: accuracy is the share of samples on the asked class (its log density above the "
    "2 % quantile of real points; 0.98 is real), recall by 3 neighbours in the plane. Plain CFG pushes samples off "
    "such thin branches: beyond w = 1.5 its accuracy falls here. Autoguidance and steering raise it",
    "digits": "Digits: accuracy by the classifier of the recipe, recall in its features",
    "shapes": "Shapes: accuracy is caption match by the held-out judge, recall in its features",
}


def page(found: dict[str, Any]) -> str:
    """docs/guidance.md."""
    lines = [
        "# Guidance: accuracy against diversity",
        "",
        "Made by `python benchmarks/guidance.py` (parts: " + ", ".join(found) + "). Scales are `neg + w (pos - neg)`, "
        "w = 1 is off; for `classifier` and `steer` the likelihood's power is w - 1 on top of the conditional model. "
        "Options are fixed, not tuned.",
        "",
        "## When to use which",
        "",
        "| technique | use it |",
        "|---|---|",
        *(f"| `{name}` | {text} |" for name, text in SAID.items()),
    ]
    for part in (p for p in WORLDS if p in found):
        kept = found[part]
        figure(part, kept)
        base = kept["rows"]["guide"]
        targets = [r["accuracy"] for r in base if r["w"] in (1.5, 2.0)]
        extra = [k for k in base[0] if k not in ("w", "accuracy", "recall")]
        lines += ["", f"## {part.capitalize()}", "", f"{TITLES[part]}; n = {kept['n']}, {kept['nfe']} steps."]
        lines += ["", verdict(kept["rows"])]
        lines += ["", f"![accuracy against recall](images/guidance_{part}.png)", ""]
        lines += ["| technique | w: accuracy / recall" + "".join(f" / {k}" for k in extra), "|---|---|"]
        lines[-2] += " | recall at CFG's accuracy of w = 1.5 | of w = 2 |"
        lines[-1] += "---:|---:|"
        for name, rows in kept["rows"].items():
            cells = "; ".join(
                f"{r['w']:g}: {r['accuracy']:.3f} / {r['recall']:.3f}" + "".join(f" / {r[k]:.3g}" for k in extra)
                for r in rows
            )
            at = [between(rows, t) for t in targets]
            lines.append(f"| {name} | {cells} | " + " | ".join("" if v is None else f"{v:.3f}" for v in at) + " |")
    if "exact" in found:
        e = found["exact"]
        lines += [
            "",
            "## What is exact",
            "",
            "Sliced W2 to exact draws of p(x) p(y|x)^s on a mixture whose classes overlap, over that of two exact sets "
            f"(n = {e['n']}); the classifier is exact, `steer` has {e['particles']} particles. Classifier guidance is "
            "exact at s = 1 only: p(y|x_t)^s is not the likelihood of the noised p(y|x)^s.",
            "",
            "| s | classifier | steer |",
            "|---:|---:|---:|",
            *(f"| {r['s']:g} | {r['classifier']:.2f} | {r['steer']:.2f} |" for r in e["tilted"]),
        ]
    if "gradient" in found:
        lines += [
            "",
            "A trained classifier's gradient: squared error over the squared size of the exact one, in expectation "
            "over x_t of its class, t in 0.1, 0.25, 0.5, 0.75; 800 steps of 512, three data sets of 200,000. Bar: 1 %. "
            "Plain labels miss it at t = 0.75, where x_t says little of the one label it was made with; "
            "`noisy_classification(pooled=True)` averages labels over the batch, with the same minimum.",
            "",
            "| optimizer | labels | error, each data set | seconds of one core |",
            "|---|---|---:|---:|",
            *(
                f"| {r['optimizer']} | {'pooled' if r['pooled'] else 'plain'} | "
                f"{', '.join(f'{100 * e:.2f} %' for e in r['errors'])} | {r['seconds']:.0f} |"
                for r in found["gradient"]
            ),
        ]
    if "steps" in found:
        lines += ["", "## 25 evaluations against 250, digits", ""]
        lines += ["| sampler | Frechet ratio at 25 | at 250 | ratio |"]
        lines += ["|---|---:|---:|---:|"]
        lines += [
            f"| {r['sampler']} | {r['25']:.3f} | {r['250']:.3f} | {r['25'] / r['250']:.2f} |" for r in found["steps"]
        ]
    if "cost" in found:
        lines += [
            "",
            "## Cost",
            "",
            "A guided evaluation against one forward of the doubled batch, least of 25 in turn:",
        ]
        lines += ["", "| network | guided, ms | doubled, ms | ratio |", "|---|---:|---:|---:|"]
        lines += [f"| {r['what']} | {r['guided']:.1f} | {r['doubled']:.1f} | {r['ratio']:.2f} |" for r in found["cost"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is asked for and not known, and write the page."""
    parse = argparse.ArgumentParser()
    parse.add_argument("parts", nargs="*", help=f"of {', '.join([*WORLDS, *REST])}; page writes the page only")
    for name in ("run", "weak"):
        parse.add_argument(f"--{name}")
    parse.add_argument("--n", type=int)
    parse.add_argument("--fresh", action="store_true")
    given = parse.parse_args()
    torch.set_num_threads(1)
    for part in given.parts or ["exact", "gradient", "cost", "fractal", "digits", "steps"]:
        kept = None if given.fresh else known().get(part)
        if part in WORLDS:
            world = WORLDS[part](given)
            asked = {"n": world.n, "nfe": world.nfe} | world.made
            if not kept or any(kept.get(k, v) != v for k, v in asked.items()):
                kept = {"rows": {}}  # of another model, or of fewer
            kept |= asked
            swept(world, kept["rows"], partial(put, part, kept))
        elif part != "page" and kept is None:
            put(part, REST[part](given))
    write_text(DOCS / "guidance.md", page(known()))


if __name__ == "__main__":
    main()
