"""Feature caching on digits: what it spares and what it costs, against the honest rival of simply taking fewer steps.

A U-Net (the digits recipe) and a small DiT, guided, dpmpp(order=2) or ddim. Errors are root mean squares over all
pixels of all samples: to the same plan uncached, and to a fine uncached run. Compute is counted in floating-point
operations of matrix products and convolutions; times are CPU time of one thread, the least of several runs that take
turns.

    python benchmarks/caching.py [--steps 30] [--samples 32] [--sampler dpmpp] [--grid flow] [--picture p.png]

Trains what is missing in runs/ first: `runs/digits` and `runs/caching/dit`, some minutes each.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import suffuse as sf
from suffuse import pictures
from suffuse.recipes import digits

FINE, REPEATS, W = 300, 3, 2.0
WAYS = {
    "reuse": [{"every": n} for n in (2, 3, 5)],
    "order 1": [{"every": n, "order": 1} for n in (2, 3, 5)],
    "order 2": [{"every": n, "order": 2} for n in (2, 3, 5)],
    "threshold": [{"threshold": d} for d in (0.1, 0.2, 0.3, 0.5)],
}


def unet():
    """The model of the digits recipe."""
    folder = Path("runs/digits")
    if not (folder / "run.json").exists():
        digits.train(folder)
    return sf.load(folder / "model")


def dit():
    """A DiT of 8 blocks, 2.5 M parameters, trained on the same digits."""
    folder = Path("runs/caching/dit")
    if not folder.exists():
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = sf.nets.DiT(1, patch=2, width=128, depth=8, conditions={"label": sf.nets.Label(10, optional=True)})
        loss = partial(sf.losses.denoising, times=sf.losses.logit_normal, dropout=0.1)
        model = sf.Denoiser(net, sf.schedules.Linear())
        done = sf.fit(loss, sf.data.digits("train"), model, steps=1600, batch_size=64, lr=1e-3, ema=0.995, seed=0)
        sf.save(done.ema, folder)
    return sf.load(folder)


def measure(model, steps: int, samples: int, sampler, grid) -> list[dict]:
    """A row a way of sampling."""
    start, label = sf.noise((samples, 1, 8, 8), seed=0), torch.arange(samples) % 10
    base = sf.guide(model.given(label=label), model, W)
    fewer = [n for n in (24, 20, 15, 12, 10, 8) if n < steps]
    ways = [("uncached", f"{n} steps", base, n) for n in (steps, *fewer)]
    for name, options in WAYS.items():
        for how in options:
            text = ", ".join(f"{k}={v}" for k, v in how.items())
            ways.append((name, text, sf.cached(base, **how), steps))
    fine = sf.sample(base, start, sampler=sampler, grid=grid, steps=FINE)
    rows = []
    for name, text, denoiser, n in ways:
        with FlopCounterMode(display=False) as counter:
            x = sf.sample(denoiser, start, sampler=sampler, grid=grid, steps=n)
        deep = denoiser.cost.share if name != "uncached" else n / steps
        rows.append({"name": name, "how": text, "x": x, "flops": counter.get_total_flops(), "deep": deep, "time": 1e9})
    for _ in range(REPEATS):
        for row, (_, _, denoiser, n) in zip(rows, ways, strict=True):
            began = time.process_time()
            sf.sample(denoiser, start, sampler=sampler, grid=grid, steps=n)
            row["time"] = min(row["time"], time.process_time() - began)
    full = dict(rows[0])
    for row in rows:
        x = row.pop("x")
        row["to plan"] = (x - full["x"]).square().mean().sqrt().item()
        row["to fine"] = (x - fine).square().mean().sqrt().item()
        row["flops"] /= full["flops"]
        row["time"] /= full["time"]
    return rows


def table(title: str, rows: list[dict]) -> None:
    """Print one."""
    print(f"\n{title}\n\n| | | deep part | compute | time | error to the plan | error to the fine run |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        shares = " | ".join(f"{r[k]:.2f}" for k in ("deep", "flops", "time"))
        print(f"| {r['name']} | {r['how']} | {shares} | {r['to plan']:.4f} | {r['to fine']:.4f} |", flush=True)


def picture(results: dict[str, list[dict]], path: str, about: str) -> None:
    """Error to the fine run against the share of compute."""
    from matplotlib.figure import Figure

    style = {"uncached": "k.-", "reuse": "C0o-", "order 1": "C1s-", "order 2": "C2^-", "threshold": "C3D-"}
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, 2, sharey=True), results.items(), strict=True):
        for name, look in style.items():
            own = sorted((r["flops"], r["to fine"]) for r in rows if r["name"] == name)
            label = "uncached, fewer steps" if name == "uncached" else name
            axes.plot(*zip(*own, strict=True), look, ms=5, lw=1.2, label=label)
        axes.axhline(rows[0]["to fine"], color="0.7", lw=0.8, zorder=0)
        axes.set(title=title, xlabel="share of compute", yscale="log", xlim=(0.2, 1.03))
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("error to the fine run (RMSE)")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(about, fontsize=9)
    pictures.save_figure(figure, path)


def main() -> None:
    """Measure both networks and print their tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sampler", choices=["dpmpp", "ddim"], default="dpmpp")
    parser.add_argument("--grid", choices=["flow", "logsnr"], default="flow")
    parser.add_argument("--picture")
    told = parser.parse_args()
    torch.set_num_threads(1)
    sampler = sf.samplers.dpmpp(order=2) if told.sampler == "dpmpp" else sf.samplers.ddim
    about = (
        f"digits, n={told.samples}, guided w={W:g}, {sampler} on grids.{told.grid}, {told.steps} steps (fine: {FINE})"
    )
    print(about)
    results = {}
    for title, make in (("U-Net", unet), ("DiT", dit)):
        results[title] = measure(make(), told.steps, told.samples, sampler, getattr(sf.grids, told.grid))
        table(title, results[title])
    if told.picture:
        picture(results, told.picture, about)


if __name__ == "__main__":
    main()
