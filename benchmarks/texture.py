"""Textures of meshes from a model of flat crops: `python benchmarks/texture.py RUN` writes docs/texture.md.

RUN is a run of `suffuse train frieze`; a judge of painted things is trained into RUN/grounds if it is not there. Every
mesh is painted from 8 cameras for every pattern and colour, and judged inside its silhouette from 8 other cameras.
Resumable: what was painted is kept in RUN/textures, what was measured in RUN/texture.json.

python benchmarks/texture.py RUN --meshes cube --colours blue --steps 2 --judge-steps 2       a smoke test
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import suffuse as sf
from suffuse import fields, metrics, pictures
from suffuse.data.shapes import COLOURS, STYLES, Frieze
from suffuse.fields import Mesh
from suffuse.recipes import frieze, grounds
from suffuse.recipes.draw import stamp
from suffuse.recipes.paint import paint, windows_of
from suffuse.recipes.run import Run
from suffuse.training.files import read_tensors, write_json, write_tensors

WINDOW, SIZE, TEXTURE, VIEWS = 32, 64, 128, 8
UNSEEN = fields.orbit(VIEWS, elevations=(0.0, 40.0), start=180 / VIEWS)
"""Between the cameras that paint, and at other heights."""
PIXEL = 2 * 3.0 * 0.384 / SIZE
"""Side of a pixel at the mesh's middle, in its units: the gap across which seams are measured."""
PAINTED = ("plain", "striped", "dotted")
"""Patterns that go on in all directions; a gradient ends with its crop, and is measured beside the bar."""


def meshes(names: list[str]) -> dict[str, Mesh]:
    """By name; spot where SUFFUSE_DATA has it."""
    spot = Path(os.environ.get("SUFFUSE_DATA", "nowhere")) / "spot" / "spot_mesh_multiview.npz"
    found = {"cube": "cube", "spot": str(spot)} if spot.exists() else {"cube": "cube"}
    return {name: fields.read_mesh(found.get(name, name)).centred() for name in names or found}


def seen(mesh: Mesh, texture: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (8, 3, 64, 64) from the unseen cameras, and what lies wholly inside the silhouette (8, 64, 64)."""
    views = [fields.shade(mesh, texture, camera, SIZE) for camera in UNSEEN]
    hit = [(fields.rasterise(mesh, camera, 2 * SIZE).face >= 0).float()[None, None] for camera in UNSEEN]
    return torch.stack(views), torch.cat([F.avg_pool2d(h, 2)[0] for h in hit]) > 0.999


def measure(mesh: Mesh, texture: Tensor, style: int, colour: int, judge: Any) -> dict[str, Any]:
    """How many of the pictures are read right, and the jumps across seams and elsewhere."""
    pattern, shade = judge.read(*seen(mesh, texture))
    across, within = fields.seams(mesh, texture, gap=PIXEL)
    return {
        "pattern": int((pattern == style).sum()),
        "colour": int((shade == colour).sum()),
        "n": len(UNSEEN),
        "across": across,
        "within": within,
        "read": [[STYLES[p] for p in pattern.tolist()], [COLOURS[c] for c in shade.tolist()]],
    }


def crops_on_a_cube(style: int, colour: int, item: int) -> Tensor:
    """A texture whose six charts show a real ground each, as large as on the cube: what the judge may say at best."""
    many = torch.arange(4000) + 4000 * item
    batch = Frieze(8_000_009, 32, WINDOW)[many]
    right = ((batch.attributes.style == style) & (batch.attributes.background == colour)).nonzero()[:6, 0]
    bare = frieze.bared(Frieze(8_000_009, 32, WINDOW)[many[right]], torch.ones(len(right), dtype=torch.bool)).images
    side = round(0.5 * 2 / 3**0.5 / PIXEL)  # pixels along an edge of the cube: a chart shows a crop of so many
    tall, wide = TEXTURE // 2, TEXTURE // 3
    charts = F.interpolate(bare[:, :, :side, :side], (tall, wide), mode="bilinear", antialias=True)
    rows = [torch.cat([charts[(3 * r + k) % len(charts)] for k in range(3)], 2) for r in (1, 0)]
    return F.pad(torch.cat(rows, 1), (0, TEXTURE - 3 * wide, 0, 0), mode="replicate")


def summed(found: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The rows of a table together."""
    rows = [found[key] for key in keys]
    n = sum(row["n"] for row in rows)
    result: dict[str, Any] = {
        name: metrics.proportion(sum(row[name] for row in rows), n, "read right by the held-out judge").to_json()
        for name in ("pattern", "colour")
    }
    return result | {"seam": sum(row["across"] for row in rows) / max(sum(row["within"] for row in rows), 1e-9)}


def main() -> None:
    """Paint and measure what is not there yet, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="runs/frieze")
    parser.add_argument("--meshes", nargs="+", default=[], help="by default cube, and spot of SUFFUSE_DATA")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), choices=STYLES)
    parser.add_argument("--colours", nargs="+", default=list(COLOURS[2:]), choices=COLOURS[2:])
    parser.add_argument("--w", type=float, default=frieze.W)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--judge-steps", type=int, default=grounds.STEPS)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    run, folder = Run.open(args.run), Path(args.run) / "grounds"
    if not (folder / "judge.safetensors").exists():
        grounds.train_judge(folder, steps=args.judge_steps, resume=(folder / "run").exists())
    judge, model, cache = grounds.read_judge(folder), run.model(), Path(args.run) / "texture.json"
    asked = {"model_hash": run.model_hash, "w": args.w, "steps": args.steps, "window": WINDOW, "size": SIZE}
    found: dict[str, Any] = json.loads(cache.read_text()) if cache.exists() else {}
    if found.get("asked") != asked:
        found = {"asked": asked}
    things, wanted, shown = meshes(args.meshes), [(s, c) for s in args.styles for c in args.colours], {}
    for style, colour in wanted:
        key = f"real {style} {colour}"
        if key not in found:
            s, c = STYLES.index(style), COLOURS.index(colour)
            found[key] = measure(fields.cube().centred(), crops_on_a_cube(s, c, 0), s, c, judge)
    for name, mesh in things.items():
        views = windows_of(mesh, fields.orbit(VIEWS), window=WINDOW, size=SIZE, texture=TEXTURE)
        for i, (style, colour) in enumerate(wanted):
            key = f"{Path(name).stem} {style} {colour}"
            kept = Path(args.run) / "textures" / f"{key.replace(' ', '-')}.safetensors"
            if key not in found or not kept.exists():
                began, text = time.monotonic(), f"a {style} {colour} background"
                guided = sf.guide(model.given(text=text), model, args.w)
                texture, share = paint(guided, views, run.shape, steps=args.steps, seed=i, chunk=args.chunk)
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(kept, {"texture": texture})
                row = measure(mesh, texture, STYLES.index(style), COLOURS.index(colour), judge)
                found[key] = row | {"seen": share, "seconds": round(time.monotonic() - began, 1)}
                write_json(cache, found)
                print(key, {k: v for k, v in found[key].items() if k != "read"}, flush=True)
            shown[key] = fields.shade(mesh, read_tensors(kept)["texture"], UNSEEN[i % VIEWS], SIZE)
    write(found, shown, [Path(name).stem for name in things], wanted, run, args)


def write(
    found: dict[str, Any], shown: dict[str, Tensor], names: list[str], wanted: list[Any], run: Run, args: Any
) -> None:
    """The page and the picture."""
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    sheet = pictures.grid(torch.stack(list(shown.values())), len(args.colours), scale=2)
    about = stamp(run) | {"made by": "benchmarks/texture.py"} | found["asked"]
    pictures.save_png(sheet, args.out / "images" / "joint-texture.png", about)
    lines, bars = [], []
    for name in ("real", *names):
        for styles in (*([s] for s in args.styles), [s for s in args.styles if s in PAINTED]):
            keys = [f"{name} {s} {c}" for s, c in wanted if s in styles]
            if not keys:
                continue
            m = summed(found, keys)
            title = styles[0] if len(styles) == 1 else "**all but gradient**"
            cells = [
                f"{m[k]['value']:.3f} ({m[k]['interval'][0]:.3f} to {m[k]['interval'][1]:.3f}, n={m[k]['n']})"
                for k in ("colour", "pattern")
            ]
            seam = "" if name == "real" else f"{m['seam']:.2f}"
            first = "flat crops on the cube" if name == "real" else name
            lines.append(f"| {first} | {title} | {cells[0]} | {cells[1]} | {seam} |")
        if name != "real":
            met = {
                "colour >= 0.9": m["colour"]["value"] >= 0.9,
                "pattern >= 0.85": m["pattern"]["value"] >= 0.85,
                "seams <= 1.2": m["seam"] <= 1.2,
            }
            bars.append(f"- {name}: " + ", ".join(f"{bar} {'met' if good else 'MISSED'}" for bar, good in met.items()))
    known = json.loads((Path(args.run) / "grounds" / "judge.json").read_text())
    (args.out / "texture.md").write_text(
        f"""# Textures of meshes

Made by `python benchmarks/texture.py`: meshes painted from {VIEWS} cameras ({SIZE} pixels, windows of {WINDOW}, a
texture of {TEXTURE} texels, {args.steps} steps, w = {args.w:g}) by a model of flat {WINDOW} x {WINDOW} crops, for
every pattern and colour, and read inside the silhouette from {VIEWS} *unseen* cameras, between those that painted and
at other heights. The judge was trained on bare grounds of other friezes, turned, foreshortened and shaded, is used for
nothing else, and reads {known["pattern"]["value"]:.3f} of patterns and {known["colour"]["value"]:.3f} of colours of
fresh ones. Eight pictures of one mesh are not independent. Seams: the mean jump across edges where charts meet over
that across other edges, a pixel apart. A gradient ends with its crop, so it is no pattern of a surface.

![one unseen view of each](images/joint-texture.png)

| painted | pattern | colour read right | pattern read right | seams |
|---|---|---:|---:|---:|
{chr(10).join(lines)}

Bars, over all patterns but gradient:

{chr(10).join(bars)}

model {run.model_hash}
"""
    )


if __name__ == "__main__":
    main()
