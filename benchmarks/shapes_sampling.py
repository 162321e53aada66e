"""How a shapes model is best sampled: captions met by scale, interval and sampler, judged by the judge in use.

python benchmarks/shapes_sampling.py [--run shapes] [--n 640]

Asked on captions and noise of its own, with kept-out combinations, at 20 evaluations. The reported numbers of
`suffuse evaluate` are by the other judge, on other captions; `recipes.shapes.SAMPLING` is what was chosen here.
"""

import argparse
import time

import torch

from suffuse import metrics, samplers
from suffuse.data.shapes import captions
from suffuse.guidance import guide
from suffuse.recipes import shapes
from suffuse.recipes.draw import decoded, sample_many
from suffuse.recipes.run import Run

SEED, NOISE = 8_000_009, 5
WAYS = (
    *((w, (0.0, 1.0), "ddpm") for w in (1.5, 2.0, 2.5, 3.0)),
    *((w, (0.0, 0.95), "ddpm") for w in (3.0, 3.5, 4.0)),
    *((w, (0.0, 0.9), "ddpm") for w in (2.5, 3.0, 4.0, 5.0)),
    *((3.0, (0.0, high), "ddpm") for high in (0.85, 0.8, 0.7)),
    (3.0, (0.2, 0.9), "ddpm"),
    (2.0, (0.0, 1.0), "ddim"),
    (3.5, (0.0, 0.95), "ddim"),
    (2.0, (0.0, 1.0), None),
    (3.5, (0.0, 0.95), None),
)


def main() -> None:
    """Print a row for each way."""
    parse = argparse.ArgumentParser()
    parse.add_argument("--run", default="shapes")
    parse.add_argument("--n", type=int, default=640)
    given = parse.parse_args()
    made = Run.open(given.run)
    model, asked = made.model(), captions(given.n, SEED, held_out=True)
    spoken = model.given(text=model.conditions["text"].ids(asked, length=shapes.WORDS))
    names = ("match", "shape", "colour", "relation", "count")
    print(f"{given.run}, {given.n} captions\n\n| w | guided at times | sampler | {' | '.join(names)} | seconds |")
    print("|---:|---|---|" + "---:|" * (len(names) + 1))
    for w, between, sampler in WAYS:
        began = time.monotonic()
        rule = None if sampler is None else samplers.rules()[sampler]()
        with torch.no_grad():
            denoiser = guide(spoken, model, w, between=between)
            z = sample_many(denoiser, given.n, made.shape, NOISE, sampler=rule, nfe=shapes.EVALUATIONS)
            report = metrics.shapes.judge("use").report(asked, decoded(model, z))
        cells = " | ".join(f"{report[name].value:.3f}" for name in names)
        low, high = between
        print(f"| {w:g} | {low:g} to {high:g} | {sampler or 'default'} | {cells} | {time.monotonic() - began:.0f} |")


if __name__ == "__main__":
    main()
