"""The same comparison on trained networks: the default against every peer, guided and unguided, in RMSE to a fine run.

python benchmarks/solvers/networks.py digits RUN      a run of `suffuse train digits`
python benchmarks/solvers/networks.py fashion RUN     trained first if RUN is not there (SUFFUSE_DATA; 10 minutes)
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import pathlib
import statistics
import warnings
from typing import Any

import numpy as np
import torch
from peers import attempt, peers
from torch import Tensor

import suffuse as sf

NFE = (5, 8, 10, 15, 20, 30)
DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "benchmarks"


KINDS = (
    "vAB",
    "REAB",
    "zAB 4",
    "zEAB 2",
    "zEAB 4",
    "xEAB",
    "UniPC-2 bh2",
    "UniPC-3 bh2",
    "DPM++",
    "SA-Solver",
    "DEIS 3",
    "flow Heun",
)


def shortlist(few: bool = False) -> dict[str, Any]:
    """The peers whose kind came among the three best of some problem and budget of the mixtures, and a few more.

    Args:
        few: without those that repeat another on a flow, or are far behind there (even in log rho).
    """
    left_out = ("even in log rho", "trailing", "exponential", "beta") if few else ()
    found = {name: peer for name, peer in peers().items() if any(kind in name for kind in KINDS)}
    return {name: peer for name, peer in found.items() if not any(word in name for word in left_out)}


class Network:
    """A denoiser asked in x/alpha at rho = sigma/alpha, flattened: what a peer's driver takes for a mixture."""

    def __init__(self, denoiser: Any, shape: tuple[int, ...]) -> None:
        self.denoiser, self.shape = denoiser, shape
        self.flat, self.log_weights = torch.zeros(1, math.prod(shape), dtype=torch.float64), torch.zeros(1)

    @torch.no_grad()
    def moments(self, y: Tensor, a: float, rho: float) -> tuple[Tensor, None]:
        """(x0, None)."""
        assert a == 1.0
        schedule = self.denoiser.schedule
        t = min(schedule.time(-2 * math.log(rho)), 1.0)
        alpha, _ = schedule(t)
        x = (alpha * y).float().reshape(-1, *self.shape)
        return self.denoiser(x, t).x0.flatten(1).double(), None


class Fine:
    """The flow of a network by a run of 400 evaluations, at every level that a peer begins or ends at."""

    def __init__(self, denoiser: Any, shape: tuple[int, ...], n: int, seed: int) -> None:
        self.mixture = Network(denoiser, shape)
        self.schedule, self.shape = denoiser.schedule, shape
        self.noise = sf.noise((n, *shape), seed=seed).flatten(1).double()
        plan = sf.samplers.plan_for(self.schedule, nfe=400, size=math.prod(shape))
        x = sf.noise((n, *shape), seed=seed)
        self.rhos, self.states = [], []
        for step in sf.run(denoiser, x, sampler=plan):
            alpha, sigma = self.schedule(step.s)
            self.rhos.append(sigma / alpha)
            self.states.append((step.x / alpha).flatten(1).double())

    def at(self, rho: float) -> Tensor:
        """x/alpha at rho; between two levels of the fine run by DDIM's line from the nearer above."""
        if rho == 0:
            return self.states[-1]
        if rho > self.rhos[0]:
            mean = self.mixture.moments(self.noise * 1e4, 1.0, 1e4)[0]
            return self.noise * rho + mean
        k = next(i for i, r in enumerate(self.rhos) if r <= rho)
        if self.rhos[k] == rho or k == 0:
            return self.states[k]
        share = (rho - self.rhos[k]) / (self.rhos[k - 1] - self.rhos[k])
        return self.states[k] + share * (self.states[k - 1] - self.states[k])

    def error(self, x: Tensor, rho: float = 0.0) -> tuple[float, float]:
        """RMSE, and RMSE of the best 95 % of the samples: the others are those that became another picture."""
        by_row = (x.double().flatten(1) - self.at(rho if rho <= 0.02 else 0.0)).square().mean(1).sort().values
        return by_row.mean().sqrt().item(), by_row[: int(0.95 * len(by_row))].mean().sqrt().item()


def fashion(run: pathlib.Path, steps: int) -> Any:
    """A class-conditional flow on Fashion-MNIST, 28 x 28, from the run's folder; trained there first if need be."""
    if not (run / "model").exists():
        folder = pathlib.Path(os.environ["SUFFUSE_DATA"]) / "fashion_mnist"
        parts = [np.load(folder / f"fashion_mnist_{half}.npz") for half in "ab"]
        images = torch.from_numpy(np.concatenate([p["train_images"] for p in parts]))[:, None].float() / 127.5 - 1
        labels = torch.from_numpy(np.concatenate([p["train_labels"] for p in parts])).long()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = sf.nets.UNet(
                1, width=24, multipliers=(1, 2, 2), blocks=1, attention=(),
                conditions={"label": sf.nets.Label(10, optional=True)},
            )  # fmt: skip
        loss = functools.partial(sf.losses.denoising, times=sf.losses.logit_normal, dropout=0.1)
        done = sf.fit(
            loss, {"x": images, "label": labels}, sf.Denoiser(net, sf.schedules.Linear(), predicts="velocity"),
            steps=steps, batch_size=64, lr=1e-3, ema=0.998, seed=0, out=run, resume=run.exists(),
        )  # fmt: skip
        sf.save(done.ema, run / "model")
    return sf.load(run / "model")


def compare(name: str, denoiser: Any, shape: tuple[int, ...], n: int, budgets: list[int], few: bool) -> list[str]:
    """Rows of the table: error of the default, of the best peer, and the ratio, by budget."""
    warnings.simplefilter("ignore")
    fine, schedule, lines, every = Fine(denoiser, shape, n, seed=11), denoiser.schedule, [], []
    for nfe in budgets:
        mine = fine.error(sf.sample(denoiser, sf.noise((n, *shape), seed=11), nfe=nfe))
        found: dict[str, tuple[float, float]] = {}
        for label, peer in shortlist(few).items():
            made = attempt(peer, fine, schedule, nfe)  # type: ignore[arg-type]
            if made is not None:
                found[label] = fine.error(made[0], made[1])
        row, ratios = "", []
        for kind in (0, 1):
            best = min(found, key=lambda k: found[k][kind])
            ratios.append(mine[kind] / found[best][kind])
            row += f" {mine[kind]:.4f} | {found[best][kind]:.4f} | {best} | {ratios[-1]:.2f} |"
        every.append(ratios)
        lines.append(f"| {name} | {nfe} |{row}")
        print(lines[-1], flush=True)
    pooled = [math.exp(statistics.fmean(math.log(ratios[kind]) for ratios in every)) for kind in (0, 1)]
    lines.append(f"| {name} | all | | | | {pooled[0]:.2f} | | | | {pooled[1]:.2f} |")
    print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Compare, and write docs/benchmarks/solvers-DATA.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=("digits", "fashion"))
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--n", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1200, help="of training, for fashion")
    parser.add_argument("--nfe", type=int, nargs="+", default=list(NFE))
    parser.add_argument("--w", type=float, nargs="+", default=[1.0, 2.5], help="guidance; 1 is off")
    parser.add_argument("--few", action="store_true", help="fewer peers")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data == "digits":
        from suffuse.recipes.run import Run

        model, shape = Run.open(args.run).model(), (1, 8, 8)
    else:
        model, shape = fashion(args.run, args.steps), (1, 28, 28)
    if args.train_only:
        return
    label = torch.arange(args.n) % 10
    told = model.given(label=label)
    head = "default | best peer | which | ratio"
    lines = [f"| model | evaluations | {head} | trimmed: {head} |", "|---" * 10 + "|"]
    with torch.no_grad():
        for w in args.w:
            model_w = told if w == 1 else sf.guide(told, model, w=w)
            lines += compare(f"{args.data}, w={w:g}", model_w, shape, args.n, args.nfe, args.few)
    text = (
        f"RMSE of {args.n} samples to a run of 400 evaluations from the same noise, and the best peer of each budget "
        f"({len(shortlist(args.few))} configurations tried); then the same without the worst 5 % of the samples, which "
        "became another picture.\n\n" + "\n".join(lines)
    )
    (DOCS / f"solvers-{args.data}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
