"""Latent diffusion and the cascade at 64 x 64 against their bars: `python benchmarks/latents.py` prints them.

python benchmarks/latents.py train        into runs/codec64, runs/latents64, runs/mmdit64, runs/cascade64; resumable
python benchmarks/latents.py [--n 500]    the bars: codec, captions met, pictures a second, cascade

The 32 x 32 model is the one that ships. The pixel model that speed is compared with is the same transformer on 64 x 64
pixels with patches of 4, untrained: speed asks for no weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import suffuse as sf
from suffuse import nets
from suffuse.data.shapes import VOCABULARY, captions
from suffuse.metrics import shapes as judges
from suffuse.recipes import cascade, latents, shapes
from suffuse.recipes.draw import decoded
from suffuse.recipes.run import Run

RUNS = {"codec": "codec64", "dit": "latents64", "mmdit": "mmdit64", "cascade": "cascade64"}
PATCH, NFE, TIMED = 4, 20, 8


def train(root: Path, parts: list[str]) -> None:
    """Train what is not there yet."""
    for part in parts:
        out = root / RUNS[part]
        if (out / "run.json").exists():
            continue
        how = {"resume": (out / "checkpoints").exists()}
        if part == "codec":
            latents.train_autoencoder(out, **how)
        elif part == "cascade":
            cascade.train(out, **how)
        else:
            latents.train(out, codec=root / RUNS["codec"], net=part, **how)


def asked(n: int) -> list[str]:
    """Captions that no training draws."""
    return captions(n, latents.FRESH)


def small(n: int) -> tuple[Tensor, list[str], dict[str, Any]]:
    """Pictures (n, 3, 32, 32) of the model that ships, what they were asked for, and the share that shows it."""
    model, said = Run.open("shapes").model(), asked(n)
    spoken = model.given(text=model.conditions["text"].ids(said, length=shapes.WORDS))
    x = decoded(model, shapes.sampled(spoken, model, n, latents.FRESH, w=shapes.SAMPLING["w"], nfe=NFE))
    return x, said, judges.judge("held_out").report(said, x)["match"].to_json()


def pixels(like: sf.Denoiser) -> sf.Denoiser:
    """The transformer of a model of latents, on pixels."""
    net = like.net
    text = {"text": nets.Words(VOCABULARY, net.width, layers=2)}
    made = type(net)(3, PATCH, net.width, net.depth, net.heads, conditions=text)
    return sf.Denoiser(made.eval(), like.schedule, predicts="velocity")


def rates(model: sf.Denoiser, shape: tuple[int, ...]) -> tuple[float, float]:
    """Pictures a second of a model of latents, decoded, and of one of pixels: the best of three in turn."""
    plain, best = pixels(model), [0.0, 0.0]

    def act(one: sf.Denoiser, shape: tuple[int, ...]) -> Tensor:
        spoken = one.given(text=one.conditions["text"].ids(asked(TIMED)))
        return decoded(one, sf.sample(sf.guide(spoken, one, 3.0), sf.noise((TIMED, *shape), 0), nfe=NFE))

    acts: list[Callable[[], Tensor]] = [lambda: act(model, shape), lambda: act(plain, (3, 64, 64))]
    for _ in range(3):
        for k, make in enumerate(acts):
            began = time.perf_counter()
            make()
            best[k] = max(best[k], TIMED / (time.perf_counter() - began))
    return best[0], best[1]


def bar(what: str, value: float, least: float, *, most: float | None = None, note: str = "") -> None:
    """One line: the number, its bar, and whether it is met."""
    met = value >= least and (most is None or value <= most)
    wanted = f">= {least:.3g}" if most is None else f"{least:.3g} to {most:.3g}"
    print(f"{what:52s} {value:7.3f}   bar {wanted:14s} {'met' if met else 'MISSED'}  {note}", flush=True)


def main() -> None:
    """Train, or measure what there is."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("act", nargs="?", choices=("train", "measure"), default="measure")
    parse.add_argument("--parts", nargs="+", choices=RUNS, default=list(RUNS))
    parse.add_argument("--root", type=Path, default=Path("runs"))
    parse.add_argument("--n", type=int, default=500)
    given = parse.parse_args()
    if given.act == "train":
        return train(given.root, given.parts)
    there = [part for part in given.parts if (given.root / RUNS[part] / "run.json").exists()]
    if missing := [part for part in given.parts if part not in there]:
        print(f"not trained yet: {', '.join(missing)}; `python benchmarks/latents.py train`")
    low, said, base = small(given.n) if set(there) - {"codec"} else (torch.empty(0), [], {})
    for part in there:
        made = Run.open(given.root / RUNS[part])
        if part == "codec":
            found = json.loads((made.path / "metrics.json").read_text())
            bar("autoencoder: PSNR on fresh scenes, dB", found["psnr"]["value"], 27, note=f"n={found['psnr']['n']}")
            bar("autoencoder: standard deviation of latents", found["latent_std"], 0.9, most=1.1)
        elif part == "cascade":
            found = cascade.evaluate(made, low, said)
            bar("cascade: PSNR of the averaged result, dB", found["psnr"]["value"], 25, note=f"n={given.n}")
            least = found["base_match"]["value"] - 0.03
            bar("cascade: captions met", found["match"]["value"], least, note="the base's less 3 points")
        else:
            found, model = latents.evaluate(made, n=given.n, nfe=NFE), made.model()
            low_end = found["match"]["interval"]
            note = f"the 32 x 32 model's {base['value']:.3f} less 5 points; 95 % {low_end[0]:.3f} to {low_end[1]:.3f}"
            bar(f"{part}: captions met", found["match"]["value"], base["value"] - 0.05, note=note)
            mine, theirs = rates(model, made.shape)
            bar(
                f"{part}: pictures a second over the pixel model's",
                mine / theirs,
                3,
                note=f"{mine:.2f} to {theirs:.2f}",
            )
    return None


if __name__ == "__main__":
    main()
