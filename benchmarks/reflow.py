"""Rectified flow from two Gaussians to two Gaussians: Z1, Z2, Z3, as in the figure of its paper, and measured.

python benchmarks/reflow.py [--runs runs/fewstep] [--rounds 3] [--steps 3000]

Writes runs/fewstep/reflow.json and docs/images/fewstep-reflow.png; about two minutes on one core.

Straightness is the integral of |(Z_1 - Z_0) - velocity|^2 along the paths, transport cost E|Z_1 - Z_0|^2, and one step
is Euler's from noise to data. Every number is of 4,096 starting points that no training saw. Bars: straightness falls
in every round, to at most 0.2 of Z1's in Z3; transport cost does not rise; the sliced W2 of one step falls by 5 from Z1
to Z2.
"""

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from suffuse import Denoiser, fit, grids, losses, metrics, nets, oracle, pictures, run, sample, samplers, schedules
from suffuse.losses import fewstep
from suffuse.training.files import write_json

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "fewstep-reflow.png"
SOURCE = oracle.Mixture([0.5, 0.5], [[-4.0, 3.0], [-4.0, -3.0]], 0.4)
TARGET = oracle.Mixture([0.5, 0.5], [[4.0, 3.0], [4.0, -3.0]], 0.4)
N, PAIRS, BATCH, TEACHER = 4096, 30_000, 512, 100


def independent(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Any point of the source with any of the target."""
    return x, draw(len(x))


def draw(n: int) -> torch.Tensor:
    """Points of the source, from torch's own generator."""
    side = 2.0 * torch.randint(2, (n, 1)) - 1
    return torch.cat([torch.full((n, 1), -4.0), 3.0 * side], 1) + math.sqrt(0.4) * torch.randn(n, 2)


def trained(number: int, data: dict[str, torch.Tensor], steps: int, first: Denoiser | None) -> Denoiser:
    """The flow of one round; it begins where the round before ended."""
    torch.manual_seed(0)
    model = Denoiser(nets.MLP(2, width=64, depth=2), schedules.Linear())
    if first is not None:
        model.net.load_state_dict(first.net.state_dict())  # type: ignore[union-attr]
    loss = partial(losses.denoising, coupling=independent)
    done = fit(
        loss,
        data,
        model,
        steps=steps,
        batch_size=BATCH,
        lr=2e-3,
        ema=0.998,
        seed=number,
        precision="float32",
        decay=0.8,
        progress=False,
    )
    return done.ema


def measured(flow: Denoiser, start: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Straightness, transport cost, and the sliced W2 of one step and of many."""
    euler = partial(sample, flow, start, sampler=samplers.ddim(), grid=grids.uniform)
    far = {
        f"w2_{n}": metrics.sliced_wasserstein(euler(steps=n), real, features="points").value for n in (1, 2, TEACHER)
    }
    pair = fewstep.pairs(flow, start, sampler=samplers.ddim(), steps=TEACHER, grid=grids.uniform)
    return {
        "straightness": fewstep.straightness(flow, start, steps=TEACHER).mean().item(),
        "transport": fewstep.transport_cost(pair).mean().item(),
        **far,
    }


def picture(flows: list[Denoiser], found: list[dict], start: torch.Tensor, path: Path) -> None:
    """The paths of each round from the source (left) to the target, and where one step ends."""
    figure = Figure(figsize=(4 * len(flows), 3.6), layout="constrained")
    for k, (axes, flow, numbers) in enumerate(zip(figure.subplots(1, len(flows)), flows, found, strict=True)):
        some = start[:120]
        states = [some, *(step.x for step in run(flow, some, sampler=samplers.ddim(), steps=50, grid=grids.uniform))]
        up = some[:, 1] > 0
        for part, colour in ((up, "#2a6f97"), (~up, "#e07a3f")):
            axes.plot(*torch.stack(states)[:, part].permute(2, 0, 1), lw=0.5, color=colour, alpha=0.7)
        axes.scatter(*some.T, s=5, color="#777777", lw=0, zorder=3)
        one = sample(flow, start[:600], sampler=samplers.ddim(), steps=1)
        axes.scatter(*one.T, s=4, color="#222222", lw=0, zorder=3)
        title = f"Z{k + 1}: straightness {numbers['straightness']:.2g}, cost {numbers['transport']:.3g}"
        axes.set_title(f"{title}\none step (black): sliced W2 {numbers['w2_1']:.2g}", fontsize=9)
        axes.set(xlim=(-6.5, 6.5), ylim=(-5.5, 5.5), xticks=[], yticks=[], aspect="equal")
    pictures.save_figure(figure, path)


def main() -> bool:
    """Whether every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/fewstep"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, real = SOURCE.sample(N, seed=1).float(), TARGET.sample(N, seed=2).float()
    data = {"x": TARGET.sample(PAIRS, seed=3).float()}
    flows: list[Denoiser] = []
    found: list[dict[str, float]] = []
    for k in range(options.rounds):
        flows.append(trained(k, data, options.steps, flows[-1] if flows else None))
        found.append(measured(flows[-1], start, real))
        print(f"Z{k + 1}:", {name: round(value, 4) for name, value in found[-1].items()}, flush=True)
        begin = SOURCE.sample(PAIRS, seed=10 + k).float()
        data = fewstep.pairs(flows[-1], begin, sampler=samplers.ddim(), steps=TEACHER, grid=grids.uniform)
    straight, cost = [f["straightness"] for f in found], [f["transport"] for f in found]
    bars = {
        "straightness falls": all(b < a for a, b in zip(straight, straight[1:], strict=False)),
        "straightness of Z3 <= 0.2 x Z1": straight[-1] <= 0.2 * straight[0],
        "transport cost does not rise": all(b <= a * 1.001 for a, b in zip(cost, cost[1:], strict=False)),
        "one step 5 x better from Z1 to Z2": found[1]["w2_1"] * 5 <= found[0]["w2_1"],
    }
    floor = metrics.sliced_wasserstein(TARGET.sample(N, seed=4).float(), real, features="points").value
    write_json(options.runs / "reflow.json", {"rounds": found, "bars": bars, "floor": floor, "n": N})
    picture(flows, found, start, IMAGE)
    print(json.dumps(bars, indent=1), f"floor {floor:.3f}")
    return all(bars.values())


if __name__ == "__main__":
    sys.exit(not main())
