"""Every few-step method on one set: one teacher, one network, one budget; measured at 1, 2 and 4 evaluations.

python benchmarks/fewstep.py [--data digits] [--teacher runs/digits] [--methods meanflow ...] [--steps 1080]
python benchmarks/fewstep.py --data fashion [--teacher runs/fashion]   # of `suffuse train images --data fashion-mnist`

Fashion-MNIST is read from SUFFUSE_DATA; its runs lie in runs/fewstep-fashion, and its page is docs/fewstep-fashion.md.

Each method is a run folder under --runs: what is finished is taken up, what was interrupted resumes, and after each
method docs/fewstep.md is written from what there is (--page: that only). Budget: the steps of 64 that the teacher had,
shared between a method's stages. Where the evaluations are a part of the training, the student is made for 1, and 2 and
4 are measured on the stage made for them (reflow, progressive distillation) or on a student of its own (DMD).
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch

from suffuse import data, fit, grids, metrics, noise, pictures, sample, samplers
from suffuse.losses import fewstep
from suffuse.recipes import digits, distil, images
from suffuse.recipes.run import Run
from suffuse.samplers import plan_for
from suffuse.training.files import read_json, write_json

DOCS = Path(__file__).parent.parent / "docs"
BUDGETS = (1, 2, 4)
OWN = ("dmd", "dmd2")
"""Methods whose student is made for one budget, and needs a training for each."""


def judged(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """A judge of labels, 4,000 real pictures that the teacher was trained on (1,437 digits), and unseen ones."""
    if options.data == "digits":
        return digits.classifier(), data.digits("train"), data.digits("test")
    train, test, rows = data.fashion_mnist("train"), data.fashion_mnist("test"), torch.arange(60_000)
    some = train[rows[::3]]
    torch.manual_seed(0)
    judge = metrics.Classifier(1, 28, 10)
    how = {"steps": 700, "batch_size": 128, "ema": None, "out": options.runs / "judge", "resume": True}
    fit(metrics.classifier_loss, {"x": some["x"], "label": some["label"]}, judge, **how)
    mine = images.split(train)[0]
    return judge.eval(), train[mine[:: len(mine) // 4000][:4000]], test[torch.arange(4000)]


def folders(runs: Path, method: str, budgets: tuple[int, ...]) -> dict[int, Path]:
    """The run that answers for a method at each budget."""
    return {n: runs / (f"{method}-{n}" if method in OWN else method) for n in budgets}


def students(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Train and measure one method, or read what is there."""
    found: dict[str, Any] = {}
    spent = 0.0
    for n, out in folders(options.runs, method, BUDGETS).items():
        asks = (n,) if method in OWN else BUDGETS
        if str(n) in found:
            continue
        if not (out / "run.json").exists():
            print(f"{method}: training {out}", flush=True)
            distil.train(
                options.teacher, out, method=method, nfe=asks[0], steps=options.steps, resume=True, progress=False
            )
        made = Run.open(out)
        if read_json(out / "asked.json")["teacher"] != Run.open(options.teacher).model_hash:
            raise SystemExit(f"{out} was distilled from another teacher than {options.teacher}: name other --runs")
        kept = read_json(out / "metrics.json") if (out / "metrics.json").exists() else {}
        if kept.get("model_hash") != made.model_hash or not all(str(k) in kept for k in asks):
            kept = distil.evaluate(made, nfe=asks, by=judged(options))
        spent += kept["cost"]["train_seconds"]
        found |= {str(k): kept[str(k)] for k in asks} | {"cost": kept["cost"] | {"train_seconds": spent}}
    return found


def teachers(options: argparse.Namespace) -> dict[str, Any]:
    """The teacher by its default sampler at the same budgets, by Euler, and at 50 steps."""
    path, made = options.runs / "teacher.json", Run.open(options.teacher)
    kept = read_json(path) if path.exists() else {}
    if kept.get("model_hash") == made.model_hash:
        return kept
    (judge, *sets), model = judged(options), made.model()
    result: dict[str, Any] = {"model_hash": made.model_hash, "train_seconds": made.train_seconds}
    size = math.prod(made.shape)

    def euler(model: Any, n: int) -> Any:
        return samplers.ddim.plan(model.schedule, grids.uniform(model.schedule, n))

    for n in (*BUDGETS, 50):
        result[str(n)] = distil.measured(model, euler, n, judge, 1, sets=sets)
        if n > 1:
            best = lambda model, n: plan_for(model.schedule, nfe=n, size=size)  # noqa: E731
            result[f"best-{n}"] = distil.measured(model, best, n, judge, 1, sets=sets)
        print("teacher", n, f"{result[str(n)]['frechet_ratio']['value']:.2f}", flush=True)
    write_json(path, result)
    return result


def flows(options: argparse.Namespace) -> dict[str, Any]:
    """How straight the flow is before and after a round of reflow, and how far it transports."""
    path, made = options.runs / "flows.json", Run.open(options.teacher)
    second = Run.open(folders(options.runs, "reflow", BUDGETS)[1])
    kept = read_json(path) if path.exists() else {}
    if kept.get("of") == [made.model_hash, second.model_hash]:
        return kept
    label, start = torch.arange(500) % 10, noise((500, *made.shape), seed=5)
    result: dict[str, Any] = {"of": [made.model_hash, second.model_hash], "n": len(start)}
    for name, model in (("teacher", made.model()), ("second round", distil.model_for(second, 2))):
        flow = model.given(label=label)
        result[name] = {
            "straightness": fewstep.straightness(flow, start).mean().item(),
            "transport": fewstep.transport_cost(fewstep.pairs(flow, start)).mean().item(),
        }
    write_json(path, result)
    return result


def cells(found: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Frechet ratio, recall and label accuracy at each budget."""
    shown = []
    for key in keys:
        m = found.get(key)
        shown += (
            ["-", "-", "-"]
            if m is None
            else [
                f"{m['frechet_ratio']['value']:.2f}",
                f"{m['recall']['value']:.2f}",
                f"{m['label_accuracy']['value']:.3f}",
            ]
        )
    return " | ".join(shown)


def page(options: argparse.Namespace, teacher: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """docs/fewstep.md."""
    runs = [Run.open(out).settings for m in found for out in folders(options.runs, m, BUDGETS).values()]
    about = " or ".join(sorted({f"{s['steps']} steps of {s['batch_size']}" for s in runs})) or "none yet"
    title = {"digits": "the real digits", "fashion": "Fashion-MNIST"}[options.data]
    fine = teacher["50"]["frechet_ratio"]["value"]
    lines = [
        "# Few steps",
        "",
        f"`python benchmarks/fewstep.py --data {options.data}`: {len(found)} of {len(distil.METHODS)} methods on "
        f"{title}, from one teacher, with its network and its own budget ({about}, shared between a method's stages). "
        "Every student begins at the teacher's weights. Frechet ratio (1 is as good as real data), recall and label "
        f"accuracy of {teacher['50']['frechet_ratio']['n']:,} samples at 1, 2 and 4 network evaluations, counted in "
        "the network; the ratio's 95 % interval is about "
        f"+-{_half(teacher['50']):.2f} at the teacher's 50 steps.",
        "",
        "| | 1: FD ratio | recall | label | 2: FD ratio | recall | label | 4: FD ratio | recall | label | training, s "
        "| parameters | in the checkpoint |",
        "|---" * 13 + "|",
    ]
    for key, name in (("", "Teacher, Euler"), ("best-", "Teacher, default sampler")):
        keys = tuple(f"{key}{n}" for n in BUDGETS)
        lines.append(f"| {name} | {cells(teacher, keys)} | {teacher['train_seconds']:.0f} | | |")
    for method, m in found.items():
        spent = m["cost"]
        lines.append(
            f"| {distil.METHODS[method].title} | {cells(m, tuple(map(str, BUDGETS)))} | {spent['train_seconds']:.0f} | "
            f"{spent['parameters']:,} | {spent['kept']:,} |"
        )
    lines += [
        "",
        f"The teacher's 50 Euler steps: {fine:.2f}, recall {teacher['50']['recall']['value']:.2f}, label "
        f"accuracy {teacher['50']['label_accuracy']['value']:.3f}. Relative to that:",
        "",
    ]
    if options.data == "digits":
        lines.append(f"- the teacher itself: {fine:.2f} (bar 1.25: {'met' if fine <= 1.25 else 'MISSED'})")
    if found:
        best = {n: min(found, key=lambda k: found[k][str(n)]["frechet_ratio"]["value"]) for n in (1, 4)}
        for n, most in ((1, 1.5), (4, 1.15)):
            value = found[best[n]][str(n)]["frechet_ratio"]["value"] / fine
            met = "met" if value <= most else "MISSED"
            lines.append(f"- best at {n}: {distil.METHODS[best[n]].title}, {value:.2f} x (bar {most} x: {met})")
        near = [k for k in found if found[k]["1"]["frechet_ratio"]["value"] <= 2 * fine]
        lines.append(
            f"- at most 2 x at one evaluation: {len(near)} ({', '.join(near) or 'none'}; bar 3: "
            f"{'met' if len(near) >= 3 else 'MISSED'})"
        )
    if "reflow" in found:
        known = flows(options)
        first, then = known["teacher"], known["second round"]
        lines += [
            "",
            f"Reflow, {known['n']} starts: straightness {first['straightness']:.3g} for the teacher, "
            f"{then['straightness']:.3g} for the second round; transport cost {first['transport']:.4g} and "
            f"{then['transport']:.4g}.",
        ]
    missing = [k for k in distil.METHODS if k not in found]
    if missing:
        lines += ["", f"Not yet run: {', '.join(missing)}."]
    lines += [
        "",
        "Parameters are those of the model; the checkpoint also holds averaged weights and, for DMD, the second "
        "model. Training seconds are wall-clock on a machine that others used at the same time.",
        "",
        f"![{title} at 1, 2 and 4 evaluations](images/{named(options)}.png)",
        "",
        "From left to right one, two and four evaluations of the same noise; the first row is the teacher in 50 steps, "
        "the others are the methods in the order of the table.",
    ]
    path = options.runs / "reflow.json"
    if path.exists():
        lines += ["", *reflow(read_json(path))]
    return "\n".join(lines) + "\n"


def reflow(kept: dict[str, Any]) -> list[str]:
    """The section on two Gaussians."""
    rows = [
        f"| Z{k + 1} | {m['straightness']:.3g} | {m['transport']:.4g} | "
        + " | ".join(f"{m[f'w2_{n}']:.3g}" for n in (1, 2, 100))
        + " |"
        for k, m in enumerate(kept["rounds"])
    ]
    bars = [f"- {name}: {'met' if good else 'MISSED'}" for name, good in kept["bars"].items()]
    return [
        "## Reflow, from two Gaussians to two Gaussians",
        "",
        f"`python benchmarks/reflow.py`, {kept['n']:,} new starting points; two sets of exact samples are "
        f"{kept['floor']:.3g} apart in sliced W2.",
        "",
        "| | straightness | transport cost | sliced W2, 1 step | 2 steps | 100 steps |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        *bars,
        "",
        "![paths of Z1, Z2, Z3](images/fewstep-reflow.png)",
    ]


def _half(m: dict[str, Any]) -> float:
    low, high = m["frechet_ratio"]["interval"]
    return (high - low) / 2


def picture(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """One row a method, ten labels of one step, then two, then four."""
    teacher, rows = Run.open(options.teacher), []
    start, label = noise((10, *teacher.shape), seed=4), torch.arange(10)
    model = teacher.model().given(label=label)
    rows.append(torch.cat([sample(model, start, sampler=samplers.ddim(), steps=50, grid=grids.uniform)] * len(BUDGETS)))
    for method in found:
        parts = []
        for n, out in folders(options.runs, method, BUDGETS).items():
            made = Run.open(out)
            model = distil.model_for(made, n)
            told: dict[str, Any] = {"label": label} | ({"w": 1.0} if "w" in model.conditions else {})
            parts.append(sample(model.given(**told), start, sampler=distil.plan(made, model, n), seed=4))
        rows.append(torch.cat(parts))
    sheet = pictures.grid(torch.cat(rows), 10 * len(BUDGETS), scale=max(1, 32 // teacher.shape[-1]))
    shown = ["teacher, 50 steps", *found]
    pictures.save_png(
        sheet, DOCS / "images" / f"{named(options)}.png", {"made by": "benchmarks/fewstep.py", "rows": shown}
    )


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", choices=("digits", "fashion"))
    parser.add_argument("--teacher", type=Path, help="by default runs/DATA")
    parser.add_argument("--runs", type=Path, help="by default runs/fewstep, or runs/fewstep-fashion")
    parser.add_argument("--methods", nargs="+", default=list(distil.METHODS), choices=list(distil.METHODS))
    parser.add_argument("--steps", type=int, default=distil.STEPS)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    options.teacher = options.teacher or Path("runs") / options.data
    options.runs = options.runs or Path("runs") / named(options)
    torch.set_num_threads(1)
    if not options.page:
        teachers(options)
        for method in options.methods:
            found = students(options, method)
            line = "  ".join(f"{n}: {found[str(n)]['frechet_ratio']['value']:.2f}" for n in BUDGETS)
            print(f"{method:26} Frechet ratio at NFE  {line}", flush=True)
            write(options)
    write(options)


def named(options: argparse.Namespace) -> str:
    """Of the page, its picture and the folder of runs."""
    return "fewstep" if options.data == "digits" else f"fewstep-{options.data}"


def write(options: argparse.Namespace) -> None:
    """The page and the picture of every method that is finished."""
    done = [
        m
        for m in distil.METHODS
        if all((out / "metrics.json").exists() for out in folders(options.runs, m, BUDGETS).values())
    ]
    found = {m: students(options, m) for m in done}
    picture(options, found)
    (DOCS / f"{named(options)}.md").write_text(page(options, teachers(options), found))


if __name__ == "__main__":
    sys.exit(main())
