"""Every deterministic sampler of suffuse, diffusers and azula against the exact flow, at equal network evaluations.

    python benchmarks/solvers                    mixtures; writes docs/benchmarks/solvers.md and its picture
    python benchmarks/solvers --fit              also a plan fitted to each problem (minutes more)
    python benchmarks/solvers --held-out         mixtures of other seeds, dimensions, spreads and schedules
    python benchmarks/solvers --jobs 2           problems in parallel

azula names torchvision for a plug-in it does not need here: `pip install --no-deps azula; pip install einops`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
import statistics
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from typing import Any

import torch
import worlds
from peers import attempt, peers

import suffuse as sf
from suffuse import pictures

NFE = (5, 8, 10, 15, 20, 30, 50)
DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
SEED = 7
BASE = [(d, kind, 100 + d, 1.0, 12) for d in (2, 16, 64) for kind in ("separated", "overlapping")]
HELD = [
    (d, kind, 7000 + 13 * i, std, k)
    for i, (d, kind, std, k) in enumerate(
        [(4, "separated", 0.7, 5), (4, "overlapping", 1.3, 9), (32, "separated", 1.2, 20), (32, "overlapping", 0.8, 7),
         (128, "separated", 0.9, 15), (128, "overlapping", 1.1, 25)]
    )
]  # fmt: skip

Result = dict[str, dict[str, float]]
"""Sampler -> {"rmse", "trimmed", "flips"}."""


def ours() -> dict[str, Any]:
    """suffuse's deterministic samplers, by the options that their papers recommend, on the grids they are used with."""
    s = sf.samplers
    rules = {
        "ddim": s.ddim,
        "heun": s.heun,
        "dpmpp 2": s.dpmpp(order=2),
        "dpmpp 3": s.dpmpp(order=3),
        "dpm_solver 3": s.dpm_solver(order=3),
        "unipc 2": s.unipc(order=2),
        "unipc 3": s.unipc(order=3),
        "deis 3": s.deis(order=3),
        "lms 4": s.lms(order=4),
        "noise_adams 3": s.noise_adams(order=3),
        "adams 3 4": s.adams(order=3, corrector=4),
        "trig_adams 3 4": s.trig_adams(order=3, corrector=4),
    }
    spaced = {"logsnr": sf.grids.logsnr, "flow": functools.partial(sf.grids.flow, shift=1.1, power=1.5)}
    return {f"{name}, {g}": (rule, grid) for name, rule in rules.items() for g, grid in spaced.items()}


def solve(
    problem: tuple[Any, ...], samples: int, fitted: bool, held: bool, before: dict[str, dict[str, Result]]
) -> dict[str, dict[int, Result]]:
    """{schedule: {nfe: {sampler: errors}}} of one mixture; from `before`, all but what has changed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    d, kind, seed, std, components = problem
    mixture = worlds.world(d, kind, seed, std=std, components=components)
    truth = worlds.Truth(mixture, samples, SEED)
    pilots = worlds.Truth(mixture, 1024, SEED + 1) if fitted else None
    found: dict[str, dict[int, Result]] = {}
    for label, schedule in (worlds.HELD_SCHEDULES if held else worlds.SCHEDULES).items():
        world, x = mixture.on(schedule), truth.start(schedule)
        for nfe in NFE:
            row: Result = found.setdefault(label, {}).setdefault(nfe, {})
            row |= before.get(f"d={d} {kind} {label}", {}).get(str(nfe), {})
            known = row.get("default")
            row["default"] = truth.error(sf.samplers.plan_for(schedule, nfe=nfe, size=d)(world, x))
            if known is not None and math.isclose(known["rmse"], row["default"]["rmse"], rel_tol=1e-9):
                continue
            for name, (rule, grid) in ours().items() if known is None else ():
                row[f"suffuse {name}"] = truth.error(
                    sf.samplers.plan_for(schedule, sampler=rule, nfe=nfe, grid=grid)(world, x)
                )
            if pilots is not None:
                began = time.perf_counter()
                plan = sf.samplers.fit(world, nfe, pilots.noise, reference=pilots.at(0.0))
                row["fitted"] = truth.error(plan(world, x)) | {"seconds": time.perf_counter() - began}
            for name, peer in peers().items() if known is None else ():
                made = attempt(peer, truth, schedule, nfe)
                if made is not None:
                    row[name] = truth.error(made[0], made[1])
        print(f"{kind} d={d} {label}: done", flush=True)
    return found


def geometric(values: Iterable[float]) -> float:
    """The geometric mean."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def is_peer(name: str) -> bool:
    """Whether it is another library's."""
    return name.startswith(("diffusers", "azula"))


def best_peer(row: Result, key: str) -> tuple[float, str]:
    """The smallest error of a peer on one problem at one budget, and whose."""
    return min((row[name][key], name) for name in row if is_peer(name) and math.isfinite(row[name][key]))


def ratios(found: dict[str, dict[int, Result]], who: str, key: str) -> dict[int, list[float]]:
    """Error over the best peer's of each problem, by budget."""
    return {n: [rows[n][who][key] / best_peer(rows[n], key)[0] for rows in found.values()] for n in NFE}


def table(found: dict[str, dict[int, Result]], names: list[str], key: str) -> str:
    """Geometric means over the problems of error / best peer, for each sampler and budget."""
    lines = ["| sampler | " + " | ".join(map(str, NFE)) + " | all |", "|---" * (len(NFE) + 2) + "|"]
    for name in names:
        r = ratios(found, name, key)
        cells = [geometric(r[n]) for n in NFE] + [geometric(v for values in r.values() for v in values)]
        lines.append(f"| {name} | " + " | ".join(f"{c:.3g}" for c in cells) + " |")
    return "\n".join(lines)


def report(found: dict[str, dict[int, Result]], samples: int, held: bool, minutes: float) -> str:
    """The page."""
    problems = list(found)
    own = [n for n in found[problems[0]][NFE[0]] if not is_peer(n)]
    own.sort(key=lambda n: geometric(v for values in ratios(found, n, "rmse").values() for v in values))
    versions = ", ".join(f"{p} {_version(p)}" for p in ("suffuse", "torch", "diffusers", "azula"))
    tried = sorted({n for rows in found.values() for row in rows.values() for n in row if is_peer(n)})
    text = [
        f"RMSE to the exact flow over that of the best of {len(tried)} peer configurations *of each problem and*",
        f"*budget*: geometric means over {len(problems)} problems, {samples:,} samples each, by network evaluations.",
        "",
        table(found, own, "rmse"),
        "",
        "The same without the worst 5 % of the samples (RMSE is decided by the few that end in another component):",
        "",
        table(found, own[:4], "trimmed"),
        "",
        "Share of samples that end in another component than the exact flow's, mean over problems:",
        "",
        "| sampler | " + " | ".join(map(str, NFE)) + " |",
        "|---" * (len(NFE) + 1) + "|",
    ]
    for name in [*own[:2], "best peer"]:
        shares = []
        for n in NFE:
            rows = [found[p][n] for p in problems]
            shares.append(
                statistics.fmean(r[best_peer(r, "rmse")[1] if name == "best peer" else name]["flips"] for r in rows)
            )
        text.append(f"| {name} | " + " | ".join(f"{100 * s:.2f} %" for s in shares) + " |")
    text += ["", "RMSE of the default, and the best peer of each problem:", ""]
    text += ["| problem | " + " | ".join(map(str, NFE)) + " |", "|---" * (len(NFE) + 1) + "|"]
    for p in problems:
        cells = []
        for n in NFE:
            rmse, name = best_peer(found[p][n], "rmse")
            short = name.replace("diffusers ", "").replace("even in log rho", "log")
            cells.append(f"{found[p][n]['default']['rmse']:.2g} / {rmse:.2g} {short}")
        text.append(f"| {p} | " + " | ".join(cells) + " |")
    command = "python benchmarks/solvers" + (" --held-out" if held else "") + (" --fit" if "fitted" in own else "")
    text += ["", f"`{command}`, {minutes:.0f} minutes; {versions}."]
    return "\n".join(text) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def draw(found: dict[str, dict[int, Result]], path: pathlib.Path) -> None:
    """Work-precision diagrams: RMSE against evaluations, one panel for each problem."""
    from matplotlib.figure import Figure

    columns, high = 3, math.ceil(len(found) / 3)
    figure = Figure(figsize=(11, 2.5 * high), layout="tight")
    axes = figure.subplots(high, columns, sharex=True, squeeze=False)
    for axis, (name, rows) in zip(axes.flat, found.items(), strict=False):
        for n in NFE:
            for peer, e in rows[n].items():
                if is_peer(peer) and e["rmse"] < 2:
                    axis.plot(n, e["rmse"], ".", color="0.75", markersize=3, zorder=0)
        axis.plot(NFE, [best_peer(rows[n], "rmse")[0] for n in NFE], color="0.35", label="best peer of each budget")
        axis.plot(NFE, [rows[n]["default"]["rmse"] for n in NFE], "o-", color="C0", markersize=3, label="default")
        if "fitted" in rows[NFE[0]]:
            axis.plot(NFE, [rows[n]["fitted"]["rmse"] for n in NFE], "--", color="C3", label="fitted")
        axis.set(xscale="log", yscale="log", title=name)
        axis.set_xticks(NFE, map(str, NFE), minor=False)
        axis.minorticks_off()
    axes.flat[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("network evaluations")
    figure.supylabel("RMSE to the exact flow (grey: every peer configuration)")
    pictures.save_figure(figure, path, dpi=80)


def main() -> None:
    """Run, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--raw", type=pathlib.Path, help="also write every number there, as JSON")
    parser.add_argument("--reuse", type=pathlib.Path, help="what --raw wrote: only what changed since is run again")
    parser.add_argument("--out", type=pathlib.Path, default=DOCS)
    args = parser.parse_args()
    began, problems = time.perf_counter(), HELD if args.held_out else BASE
    before = {} if args.reuse is None else json.loads(args.reuse.read_text())
    work = functools.partial(solve, samples=args.samples, fitted=args.fit, held=args.held_out, before=before)
    found: dict[str, dict[int, Result]] = {}
    with ProcessPoolExecutor(args.jobs) as pool:
        for (d, kind, *_), made in zip(problems, pool.map(work, problems), strict=True):
            found |= {f"d={d} {kind} {label}": rows for label, rows in made.items()}
    name = "solvers-held-out" if args.held_out else "solvers"
    args.out.mkdir(parents=True, exist_ok=True)
    page = report(found, args.samples, args.held_out, (time.perf_counter() - began) / 60)
    if args.raw is not None:
        args.raw.write_text(json.dumps(found))
    (args.out / f"{name}.md").write_text(page)
    draw(found, args.out / f"{name}.png")
    print(page)


if __name__ == "__main__":
    main()
