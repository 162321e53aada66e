"""The texture of a mesh from a model of small pictures: python examples/joint_texture.py RUN [MESH]

Cameras around the mesh see its texture, windows of the model's size see the cameras' pictures. Every window has a state
and noise of its own, and what all believe of the clean picture is merged in the texture (SyncTweedies).
"""

import argparse

from suffuse import fields, pictures
from suffuse.recipes.paint import paint, windows_of
from suffuse.recipes.run import Run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", nargs="?", default="runs/frieze")
parser.add_argument("mesh", nargs="?", default="cube")
parser.add_argument("--prompt", default="a striped blue background")
parser.add_argument("--views", type=int, default=8)
parser.add_argument("--size", type=int, default=64)
parser.add_argument("--texture", type=int, default=128)
parser.add_argument("--steps", type=int, default=20)
args = parser.parse_args()

made = Run.open(args.run)
mesh = fields.read_mesh(args.mesh).centred()
views = windows_of(mesh, fields.orbit(args.views), window=made.shape[1], size=args.size, texture=args.texture)
model = made.model().given(text=args.prompt)
texture, seen = paint(model, views, made.shape, steps=args.steps, seed=0, chunk=16)
print(f"{views.n} windows saw {100 * seen:.0f} % of the texture")
fields.write_mesh(mesh, texture, "painted")
frames = [fields.shade(mesh, texture, camera, 128) for camera in fields.orbit(16, elevations=(15.0,))]
pictures.animation([pictures.grid(f[None], 1, gap=0) for f in frames], "painted/turntable.gif", vars(args), hold=120)
