"""A panorama from a model of small pictures: python examples/joint_panorama.py RUN

Windows of one wide canvas are denoised together; where they overlap, what they believe of the clean picture is averaged
(MultiDiffusion). The canvas may have any width; `wrap` makes it go around.
"""

import argparse

import suffuse as sf
from suffuse import joint, operators, pictures
from suffuse.recipes.run import Run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", nargs="?", default="runs/frieze")
parser.add_argument("--width", type=int, default=256)
parser.add_argument("--steps", type=int, default=30)
args = parser.parse_args()

made = Run.open(args.run)
channels, high, wide = made.shape
canvas = (high, max(args.width, wide))
views = operators.Crops((high, wide), max(1, high // 4), canvas, wrap=True)
noise = sf.noise((1, channels, *canvas), seed=0)

average = joint.average(made.model(), views, chunk=16)
flat = sf.sample(average, noise, steps=args.steps)

# the same, each window pushed towards the look of the middle one (SyncDiffusion)
middle = len(views.corners) // 2
pushed = joint.syncdiffusion(made.model(), views, joint.look, w=0.5, anchor=middle, chunk=16)
alike = sf.sample(pushed, noise, sampler=sf.samplers.ddim, steps=args.steps)

# and what they are better than: pictures side by side that know nothing of each other
apart = sf.sample(made.model(), sf.noise((canvas[1] // wide, channels, high, wide), seed=0), steps=args.steps)
apart = apart.transpose(0, 1).movedim(1, 2).flatten(2)[None]
apart = sf.operators.Crops((high, apart.shape[-1]), 1, (high, canvas[1])).pinv(apart[:, None])

for name, x in {"averaged": flat, "pushed": alike, "apart": apart}.items():
    pictures.save_png(pictures.grid(x, 1, scale=4), f"panorama-{name}.png")
