"""Panoramas of friezes: `python benchmarks/panorama.py RUN` writes docs/panorama.md and docs/images/joint-panorama.png.

RUN is a run of `suffuse.recipes.frieze.train`; its judge is trained into RUN/judge if it is not there. Resumable: what
was measured is kept in RUN/panorama.json.
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
from suffuse import joint, metrics, operators, pictures, samplers
from suffuse.data.shapes import COLOURS, STYLES, Frieze
from suffuse.recipes import frieze
from suffuse.recipes.draw import sample_many, stamp
from suffuse.recipes.run import Run

SIZE, WIDTH, STRIDE, STEPS, FRESH = 32, 256, 8, 30, 6_000_011
VIEWS = operators.Crops(SIZE, STRIDE, (SIZE, WIDTH))
LOOKED = operators.Crops(SIZE, 4, (SIZE, WIDTH))
APART = operators.Crops(SIZE, SIZE, (SIZE, WIDTH))
HALVES = operators.Crops(SIZE, SIZE // 2, (SIZE, WIDTH))
"""Of DiffCollage, and so where its seams are looked for."""
GROUNDS = [f"shapes on a {style} {colour} background" for style in STYLES for colour in COLOURS[2:]]


class Made:
    """Panoramas (n, 3, 32, 256) by each method, told a ground each, or nothing."""

    def __init__(self, run: Run, w: float, push: float, chunk: int) -> None:
        self.model, self.w, self.push, self.chunk = run.model(), w, push, chunk

    def _model(self, told: bool, rows: int, each: int) -> Any:
        if not told:
            return self.model
        text = [GROUNDS[i % len(GROUNDS)] for i in range(rows) for _ in range(each)]
        return sf.guide(self.model.given(text=text), self.model, self.w)

    def plain(self, n: int, told: bool, seed: int) -> Tensor:
        """Single pictures."""
        return sample_many(self._model(told, n, 1), n, (3, SIZE, SIZE), seed, steps=STEPS)

    def apart(self, n: int, told: bool, seed: int) -> Tensor:
        each = WIDTH // SIZE
        x = sample_many(self._model(told, n, each), n * each, (3, SIZE, SIZE), seed, steps=STEPS)
        return APART.pinv(x.unflatten(0, (n, each)))

    def _joint(self, make: Callable[[Any], Any], n: int, told: bool, seed: int, **how: Any) -> Tensor:
        parts = []
        for i in range(0, n, 4):  # a few at a time, for the memory
            model = self._model(told, n, len(VIEWS.corners))
            model = model.rows(slice(i * len(VIEWS.corners), (i + 4) * len(VIEWS.corners))) if told else model
            z = sf.noise((min(4, n - i), 3, SIZE, WIDTH), seed, first=i)
            parts.append(sf.sample(make(model), z, steps=STEPS, **how))
        return torch.cat(parts)

    def average(self, n: int, told: bool, seed: int) -> Tensor:
        return self._joint(lambda m: joint.average(m, VIEWS, chunk=self.chunk), n, told, seed)

    def average_ddim(self, n: int, told: bool, seed: int) -> Tensor:
        return self._joint(lambda m: joint.average(m, VIEWS, chunk=self.chunk), n, told, seed, sampler=samplers.ddim)

    def pushed(self, n: int, told: bool, seed: int) -> Tensor:
        def make(m: Any) -> Any:
            middle = len(VIEWS.corners) // 2
            return joint.syncdiffusion(m, VIEWS, joint.look, w=self.push, anchor=middle, chunk=self.chunk)

        return self._joint(make, n, told, seed, sampler=samplers.ddim)

    def collage(self, n: int, told: bool, seed: int) -> Tensor:
        """Windows that overlap by a half: the model is asked about overlaps 32 x 16."""
        windows, parts = HALVES, []
        for i in range(0, n, 4):
            rows = min(4, n - i)
            model, over = self.model, self.model
            if told:
                texts = [GROUNDS[k % len(GROUNDS)] for k in range(i, i + rows)]
                many = len(windows.corners)
                model = sf.guide(self.model.given(text=[t for t in texts for _ in range(many)]), self.model, self.w)
                over = sf.guide(self.model.given(text=[t for t in texts for _ in range(many - 1)]), self.model, self.w)
            z = sf.noise((rows, 3, SIZE, WIDTH), seed, first=i)
            made = joint.collage(model, windows, overlap=over, chunk=self.chunk)
            parts.append(sf.sample(made, z, steps=STEPS, sampler=samplers.ddim))
        return torch.cat(parts)


METHODS = {
    "apart": "independent windows side by side",
    "average": "MultiDiffusion (average), default sampler",
    "average_ddim": "MultiDiffusion (average), DDIM",
    "pushed": "SyncDiffusion, DDIM",
    "collage": "DiffCollage, DDIM",
}


def seam_ratio(x: Tensor, edges: list[int]) -> float:
    """Mean change from column to column at the windows' edges, over that elsewhere."""
    change = x.diff(dim=-1).abs().mean((0, 1, 2))
    at = torch.zeros(len(change), dtype=torch.bool)
    at[[e - 1 for e in edges if 0 < e < x.shape[-1]]] = True
    return (change[at].mean() / change[~at].mean()).item()


def measure(x: Tensor, judge: Any, method: str) -> dict[str, Any]:
    """Share of windows at stride 4 on the manifold, seam ratio, variance of the look between windows."""
    x = x.clamp(-1, 1)
    good, _ = judge.read(LOOKED(x).flatten(0, 1))
    _, look = judge.read(APART(x).flatten(0, 1))
    variance = look.unflatten(0, (len(x), -1)).var(1, correction=0).sum(-1)
    edges = [left for _, left in {"apart": APART, "collage": HALVES}.get(method, VIEWS).corners]
    edges += [left + SIZE for left in edges]
    return {
        "windows": metrics.proportion(
            int(good.sum()), len(good), "read by the held-out judge of frieze windows"
        ).to_json(),
        "seam": round(seam_ratio(x, edges), 4),
        "variance": metrics.mean(variance, "variance of the judge's style and colour between windows").to_json(),
    }


def main() -> None:
    """Measure what is not measured yet, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="runs/frieze")
    parser.add_argument("--n", type=int, default=32, help="panoramas of each kind")
    parser.add_argument("--w", type=float, default=frieze.W)
    parser.add_argument("--push", type=float, default=0.3)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--judge-steps", type=int, default=frieze.JUDGE_STEPS)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    run = Run.open(args.run)
    folder = Path(args.run) / "judge"
    if not (folder / "judge.safetensors").exists():
        frieze.train_judge(folder, steps=args.judge_steps, resume=(folder / "run").exists())
    judge, made = frieze.read_judge(folder), Made(run, args.w, args.push, args.chunk)
    cache = Path(args.run) / "panorama.json"
    asked = {"model_hash": run.model_hash, "n": args.n, "w": args.w, "push": args.push}
    found: dict[str, Any] = json.loads(cache.read_text()) if cache.exists() else {}
    if found.get("asked") != asked:
        found = {"asked": asked}
    shown: dict[str, list[Tensor]] = {}

    def keep(key: str, value: Any) -> None:
        found[key] = value
        part = cache.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.replace(cache)
        print(key, json.dumps(value)[:300], flush=True)

    if "real" not in found:
        real = torch.cat([Frieze(FRESH, SIZE, WIDTH)(i, 8).images for i in range(0, 64, 8)])
        keep("real", measure(real, judge, "average"))
    for told in (True, False):
        name = f"plain {told}"
        if name not in found:
            good, _ = judge.read(made.plain(16 * args.n, told, seed=FRESH).clamp(-1, 1))
            keep(name, metrics.proportion(int(good.sum()), len(good), "plain samples").to_json())
        for method in METHODS:
            key = f"{method} {told}"
            picture = Path(args.run) / f"panorama-{method}-{told}.pt.npy"
            if key not in found:
                began = time.monotonic()
                x = getattr(made, method)(args.n, told, seed=1)
                save(x[:4], picture)
                keep(key, measure(x, judge, method) | {"seconds": round(time.monotonic() - began, 1)})
            shown.setdefault(method, []).append(load(picture))
    write(found, shown, run, args, json.loads((folder / "judge.json").read_text()))


def save(x: Tensor, path: Path) -> None:
    """Keep a few pictures for the page."""
    import numpy as np

    np.save(path, (x.clamp(-1, 1) * 127).round().to(torch.int8).numpy(), allow_pickle=False)


def load(path: Path) -> Tensor:
    """What `save` kept."""
    import numpy as np

    return torch.from_numpy(np.load(path, allow_pickle=False)).float() / 127


def write(found: dict[str, Any], shown: dict[str, list[Tensor]], run: Run, args: Any, about: dict[str, Any]) -> None:
    """The page and the picture."""
    out = args.out / "images" / "joint-panorama.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = torch.cat([x for method in METHODS for x in (shown[method][0][:1], shown[method][1][:1])])
    stamped = stamp(run) | {"made by": "benchmarks/panorama.py", "seed": 1} | found["asked"]
    pictures.save_png(pictures.grid(rows, 1, scale=3), out, stamped)
    parts = []
    for told in (True, False):
        plain = found[f"plain {told}"]
        base = found[f"average_ddim {told}"]["variance"]["value"]
        lines = [
            "| method | windows on the manifold | over plain | seam ratio | variance of look | over average's |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for method, words in METHODS.items():
            m = found[f"{method} {told}"]
            v = m["variance"]["value"]
            low, high = m["windows"]["interval"]
            lines.append(
                f"| {words} | {m['windows']['value']:.3f} ({low:.3f} to {high:.3f}, n={m['windows']['n']}) | "
                f"{m['windows']['value'] / max(plain['value'], 1e-9):.3f} | {m['seam']:.2f} | "
                f"{v:.4f} | {v / max(base, 1e-9):.2f} |"
            )
        title = f"Told a ground each, w = {args.w:g}" if told else "Told nothing"
        low, high = plain["interval"]
        parts.append(
            f"## {title}\n\nPlain samples are on the manifold in {plain['value']:.3f} "
            f"({low:.3f} to {high:.3f}, n={plain['n']}).\n\n" + "\n".join(lines)
        )
    real = found["real"]
    (args.out / "panorama.md").write_text(
        f"""# Panoramas of friezes

Made by `python benchmarks/panorama.py --n {args.n} --push {args.push:g}`: {args.n} panoramas of 32 x 256 of each kind,
from a model of 32 x 32 crops; windows every {STRIDE} pixels, {STEPS} steps. Every 32 x 32 window at stride 4 is read by
a judge that was trained on windows of other friezes, whole and spoilt, and is used for nothing else: it knows
{about["real"]["value"]:.3f} of fresh real windows and {about["spoilt"]["value"]:.3f} of spoilt ones, and reads
{about["style"]["value"]:.3f} of styles and {about["colour"]["value"]:.3f} of colours. Real friezes: windows
{real["windows"]["value"]:.3f}, seam ratio {real["seam"]:.2f}, variance {real["variance"]["value"]:.4f}. The seam ratio
is the mean change from column to column at the windows' edges over that elsewhere; the variance is of the judge's
probabilities of style and colour, between eight windows of a panorama.

![panoramas by each method](images/joint-panorama.png)

From the top, two rows each (told a ground, told nothing): {"; ".join(METHODS.values())}.

{(chr(10) * 2).join(parts)}

model {run.model_hash}
"""
    )


if __name__ == "__main__":
    main()
