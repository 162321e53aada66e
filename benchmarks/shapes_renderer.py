"""How many scenes a second one core renders, against the bar of 3,000 at 32 x 32; the fastest of many batches.

python benchmarks/shapes_renderer.py [--picture docs/images/shapes.png]

The bar is on processor time of the one thread: wall time, beside it, is lengthened by other work on the machine.
"""

import sys
import textwrap
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from suffuse.data.shapes import Scenes
from suffuse.pictures import grid, save_png

BAR = 3000


def speed(scenes: Scenes, batch: int, batches: int) -> tuple[float, float]:
    """Images a second by the wall clock and by processor time."""
    best = [1e9, 1e9]
    for i in range(batches):
        began = time.perf_counter(), time.process_time()
        scenes(i * batch, batch).images  # noqa: B018
        best = [min(best[0], time.perf_counter() - began[0]), min(best[1], time.process_time() - began[1])]
    return batch / best[0], batch / best[1]


def picture(path: str, seed: int = 11, scale: int = 4) -> None:
    """A sheet of captioned scenes: two rows at 32 x 32 and one at 64 x 64."""
    rows = [(Scenes(seed), 0, scale), (Scenes(seed), 6, scale), (Scenes(seed, 64), 20, scale // 2)]
    side, note, columns, font = 32 * scale, 72, 6, ImageFont.load_default(10)
    sheet = Image.new("RGB", (columns * (side + 12) + 12, len(rows) * (side + note) + 12), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (scenes, first, times) in enumerate(rows):
        batch = scenes(first, columns)
        for column, caption in enumerate(batch.captions):
            x, y = 12 + column * (side + 12), 12 + row * (side + note)
            sheet.paste(grid(batch.images[column : column + 1], 1, scale=times, gap=0), (x, y))
            draw.text((x, y + side + 2), textwrap.fill(caption, 24), "black", font=font, spacing=1)
    save_png(sheet.quantize(128), Path(path), {"made by": "benchmarks/shapes_renderer.py", "seed": seed})
    Path(f"{path}.json").unlink()


def main(batch: int = 128) -> bool:
    """Print a row a world; whether the bar is met at 32 x 32."""
    torch.set_num_threads(1)
    met = True
    for name, scenes in (
        ("32, one object", Scenes(counts=(1.0,))),
        ("32", Scenes()),
        ("64", Scenes(size=64)),
    ):
        wall, processor = speed(scenes, batch, 60)
        print(f"{name:24s} {wall:8,.0f} images/s by the clock  {processor:8,.0f} by processor time  (batch {batch})")
        met &= name != "32" or processor >= BAR
    print(f"bar of {BAR:,} at 32 x 32: {'met' if met else 'MISSED'}")
    return met


if __name__ == "__main__":
    if sys.argv[1:2] == ["--picture"]:
        picture(sys.argv[2])
    else:
        sys.exit(not main())
