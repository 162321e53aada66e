"""The swiss roll of the KAIST diffusion course in the course's own budget, five times, against its bars.

python benchmarks/swiss_roll.py [--seeds 0 1 2 3 4] [--runs runs/swiss_roll]

Trains `suffuse train toy --data swiss-roll` (5,000 batches of 128, 182,402 parameters; the course's network has
182,410) for each seed, evaluates it, and takes up what is there. With all five seeds done it writes
docs/benchmarks/swiss-roll.md and .png.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from suffuse import pictures
from suffuse.recipes import toy
from suffuse.recipes.run import Run
from suffuse.training.files import read_json

SEEDS = (0, 1, 2, 3, 4)
BARS = {"ddpm": (20.0, 3.8), "ddim": (40.0, 20.7), "dpm_solver": (40.0, 12.5), "flow": (40.0, 26.5)}
"""What every seed must be below, and the median at most."""
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"


def result(folder: Path, seed: int) -> dict:
    """Train and evaluate one seed, or read what is there."""
    if not (folder / "run.json").exists():
        toy.train(folder, seed=seed, resume=True, progress=False)
    made = Run.open(folder)
    if (folder / "metrics.json").exists():
        found = read_json(folder / "metrics.json")
        if found["model_hash"] == made.model_hash:
            return found | {"train_seconds": made.train_seconds}
    return toy.evaluate(made) | {"train_seconds": made.train_seconds}


def value(found: dict, name: str, metric: str) -> float:
    """One number."""
    return found[name]["measured"][metric]["value"]


def table(found: dict[int, dict]) -> tuple[str, bool]:
    """The page's table, and whether every bar is met."""
    lines, met = [], True
    head = " | ".join(f"seed {seed}" for seed in found)
    lines += [f"| Chamfer (sum of squares) | {head} | median | every seed below | median at most |"]
    lines += ["|---" * (len(found) + 4) + "|"]
    for name in (*toy.SAMPLERS, "floor", "chance"):
        each = [value(f, name, "chamfer") for f in found.values()]
        middle, bars = statistics.median(each), "| |"
        if name in BARS:
            every, most = BARS[name]
            good = max(each) < every, middle <= most
            met &= all(good)
            bars = f"{every:g} {'met' if good[0] else 'MISSED'} | {most:g} {'met' if good[1] else 'MISSED'} |"
        row = " | ".join(f"{v:.3g}" for v in each)
        lines.append(f"| {next(iter(found.values()))[name]['asked']} | {row} | **{middle:.3g}** | {bars}")
    lines += ["", "| median of the seeds | Chamfer | energy distance | W2 |", "|---|---|---|---|"]
    for name in (*toy.SAMPLERS, "floor", "chance"):
        middle = [statistics.median(value(f, name, m) for f in found.values()) for m in toy.MEANING]
        lines.append(
            f"| {next(iter(found.values()))[name]['asked']} | " + " | ".join(f"{v:.3g}" for v in middle) + " |"
        )
    return "\n".join(lines), met


def picture(runs: Path, found: dict[int, dict], path: Path) -> None:
    """Samples of the first seed over the points they are measured against, and every seed's distance by sampler."""
    first = next(iter(found))
    model = Run.open(runs / str(first)).model()
    seed = found[first]["seed"]
    real = toy.points("swiss-roll", toy.ASKED, toy.FRESH + 2 * seed)
    figure = Figure(figsize=(12, 6.9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
    upper.suptitle("grey: real points; blue: samples", fontsize=9, color="#666")  # and room for the titles below it
    for axes, name in zip(upper.subplots(1, 4), BARS, strict=True):
        x = toy.samples(model, name, toy.ASKED, seed)
        axes.scatter(*real.T, s=5, color="#c9c9c9", lw=0)
        axes.scatter(*x.T, s=2, color="#2a6f97", lw=0)
        title = f"{found[first][name]['asked']}\nseed {first}: {value(found[first], name, 'chamfer'):.1f}"
        axes.set_title(title, fontsize=9)
        axes.set(xlim=(-4.3, 4.3), ylim=(-4.3, 4.3), xticks=[], yticks=[], aspect="equal")
    axes = lower.subplots()
    names = [*toy.SAMPLERS, "floor"]
    for k, name in enumerate(names):
        each = [value(f, name, "chamfer") for f in found.values()]
        axes.plot([k] * len(each), each, "o", ms=5, color="#2a6f97", alpha=0.6, label="a seed" if k == 0 else None)
        middle = statistics.median(each)
        axes.plot([k - 0.2, k + 0.2], [middle] * 2, color="#2a6f97", lw=2, label="median" if k == 0 else None)
        if name in BARS:
            for bar, colour, what in zip(BARS[name], ("#b33", "#e07a3f"), ("every seed", "median"), strict=True):
                label = f"bar of {what}" if k == 0 else None
                axes.plot([k - 0.3, k + 0.3], [bar] * 2, "--", color=colour, lw=1.2, label=label)
    asked = [found[first][name]["asked"].replace(", ", ",\n").replace(": ", ":\n") for name in names]
    axes.set_xticks(range(len(names)), asked, fontsize=8)
    axes.set(yscale="log", ylabel="Chamfer distance (2,048 points)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left")
    pictures.save_figure(figure, path, dpi=100)


def main() -> bool:
    """Whether every bar is met by the seeds asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--runs", type=Path, default=Path("runs/swiss_roll"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for seed in options.seeds:
        found[seed] = result(options.runs / str(seed), seed)
        shown = "  ".join(f"{name} {value(found[seed], name, 'chamfer'):.2f}" for name in toy.SAMPLERS)
        print(f"seed {seed}: {shown}  trained in {found[seed]['train_seconds']:.0f} s", flush=True)
    text, met = table(found)
    print(text)
    if tuple(found) == SEEDS:
        picture(options.runs, found, DOCS / "swiss-roll.png")
        page = (
            "# The swiss roll of the KAIST diffusion course\n\n"
            "`python benchmarks/swiss_roll.py`: the course's data and budget (5,000 batches of 128 points, each seen "
            "once) and a network of its size (182,402 parameters, the course's 182,410), with averaged weights, a "
            "falling learning rate, and Muon for the matrices of the hidden layers. One flow a seed answers for every "
            "sampler: DDPM, DDIM and DPM-Solver see it on the course's 1,000 betas, by `.on(Discrete.ddpm())`. The "
            "distance is the course's, 2,048 samples against 2,048 points; here these are points that training did "
            "not see.\n\n"
            "The bars are those of the course for full marks (every seed), and the best cheap variants of its own "
            "network (median).\n\n"
            f"{text}\n\n![samples, and distances by seed](swiss-roll.png)\n"
        )
        (DOCS / "swiss-roll.md").write_text(page)
    return met


if __name__ == "__main__":
    sys.exit(not main())
