"""What the two judges of the shapes world read right on fresh real scenes, and whether rules on colour agree with them.

python benchmarks/shapes_judges.py [--n 4096]

Bars: 99 % on colour, shape and count, 98 % on relation; the held-out judge agrees with the rules on colour in 99 %.
"""

import argparse

import torch

from suffuse import metrics
from suffuse.data.shapes import COLOURS, Scenes
from suffuse.recipes.judges import FRESH

BARS = {"count": 0.99, "shape": 0.99, "colour": 0.99, "relation": 0.98}


def agreeing(judge: metrics.shapes.Judge, n: int) -> metrics.Measured:
    """Share of scenes in which judge and rules find the same colours of objects."""
    images = Scenes(FRESH)(0, n).images
    read, rules = judge.read(images), metrics.shapes.read_by_rules(images)
    found = torch.zeros_like(rules.pieces)
    rows, slots = read.present.nonzero(as_tuple=True)
    named = read.colour[rows, slots]
    found[rows[named >= 0], named[named >= 0]] = 1
    same = ((found[:, : len(COLOURS)] > 0) == rules.colours).all(1)
    return metrics.proportion(int(same.sum()), n, "share of scenes in which judge and rules find the same colours")


def main() -> None:
    """Print a row for each judge."""
    parse = argparse.ArgumentParser()
    parse.add_argument("--n", type=int, default=4096)
    n = parse.parse_args().n
    for name in ("use", "held_out"):
        judge = metrics.shapes.judge(name)
        found = metrics.shapes.accuracy(judge, Scenes(FRESH), n) | {"agrees with the rules": agreeing(judge, n)}
        print(f"\n{name}, {n} scenes of seed {FRESH}")
        for what, value in found.items():
            bar = BARS.get(what, 0.99 if what == "agrees with the rules" and name == "held_out" else None)
            print(f"  {what:22s} {value}" + ("" if bar is None else f"  ({'met' if value.value >= bar else 'MISSED'})"))


if __name__ == "__main__":
    main()
