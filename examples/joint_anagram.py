"""A picture that is one digit, and another one upside down: python examples/joint_anagram.py RUN

The model is asked about the picture and about the picture turned, each under its own label; both beliefs about the
clean picture are turned back and averaged (Visual Anagrams).
"""

import argparse

import torch

import suffuse as sf
from suffuse import joint, operators, pictures
from suffuse.recipes.run import Run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", nargs="?", default="runs/digits")
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()

made = Run.open(args.run)
model, n = made.model(), 8
views = [operators.Identity(), operators.Turn(2)]
labels = torch.tensor([6, 9]).repeat(n)  # the views of picture 0, then those of picture 1, ...
guided = sf.guide(model.given(label=labels), model, 4.0)
x = sf.sample(joint.anagram(guided, views), sf.noise((n, *made.shape), seed=0), steps=args.steps)
pictures.save_png(pictures.grid(torch.cat([view(x) for view in views]), n, scale=8), "anagram.png")
