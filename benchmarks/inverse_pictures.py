"""Restoration of pictures, measured: `python benchmarks/inverse_pictures.py digits fashion` writes docs/inverse.md.

    digits     runs/digits (or --run), the 360 digits that were kept out of training; needs scikit-learn
    fashion    runs/fashion, test pictures of SUFFUSE_DATA
    shapes     the model that ships, or --run, finished or not: inpainting, fill by text read by the held-out judge, and
               restoration by the methods that work through a decoder

Each writes its section, and leaves the others; its pictures go to docs/images.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import suffuse as sf
from inverse import Counted, section
from suffuse import data, metrics, pictures, zoo
from suffuse.data.shapes import COLOURS, SHAPES, Scenes, held_out, parse
from suffuse.guidance import guide
from suffuse.operators import GaussianNoise, LinearOperator, Mask
from suffuse.recipes import restore, shapes
from suffuse.recipes.control import base_of
from suffuse.recipes.draw import encoded
from suffuse.recipes.run import Run
from suffuse.training import fit

SIGMA = 0.05


@dataclass
class World:
    """A set of pictures: the prior, pictures it was not trained on, what is done to them, and a network that looks."""

    name: str
    about: str
    model: Any
    x: Tensor
    problems: tuple[str, ...]
    net: Any
    features: str
    shown: tuple[str, ...] = ("pigdm", "mmps", "ddrm", "repaint")


def newest(run: Path) -> Any:
    """The model of a run: finished, shipped, or the averaged weights of its newest checkpoint (the shapes recipe)."""
    if (run / "model").is_dir():
        return sf.load(run / "model"), "finished"
    model, weights = base_of(run)
    if weights.startswith("step-"):
        return model, f"unfinished, at step {int(weights.split('-')[1]):,}"
    return model, "as it ships" if zoo.has(run) else "finished"


def start(model: Any, x: Tensor, first: int = 0) -> Tensor:
    """Noise for pictures x: of their shape, or of their latents'."""
    return sf.noise((len(x), *encoded(model, x[:1]).shape[1:]), seed=7, first=first)


def looker(x: Tensor, label: Tensor) -> Any:
    """A small classifier of real pictures, for perceptual distances."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        judge = metrics.Classifier(x.shape[1], x.shape[-1], 10)
    how: dict[str, Any] = {"batch_size": 128, "lr": 2e-3, "weight_decay": 0.01, "ema": None, "precision": "float32"}
    fit(metrics.classifier_loss, {"x": x, "label": label}, judge, steps=200, seed=0, progress=False, **how)
    return judge.eval()


def of_digits(run: Path, n: int) -> World:
    """8 x 8 digits."""
    made = Run.open(run)
    about = f"`{run}` (trained {made.train_seconds:.0f} s), 8 x 8 digits kept out of training"
    problems = ("blur:0.8", "downsample:2", "random:0.5", "box:2,2,4,4")
    real = data.digits("train")
    judge = looker(real["x"], real["label"])
    return World("digits", about, made.model(), data.digits("test")["x"][:n], problems, judge, "a digit classifier")


def of_fashion(run: Path, n: int) -> World:
    """28 x 28 clothes."""
    train, test = data.fashion_mnist("train"), data.fashion_mnist("test")
    some = train[torch.arange(0, 60000, 6)]
    problems = ("blur:1.5", "downsample:4", "random:0.2", "box:8,8,12,12")
    about = f"`{run}`, a small U-Net after 700 steps, 28 x 28 test pictures of Fashion-MNIST"
    rows = torch.arange(n) * 37
    judge = looker(some["x"], some["label"])
    return World("fashion", about, newest(run)[0], test[rows]["x"], problems, judge, "a Fashion-MNIST classifier")


def of_scenes(run: Path, n: int) -> World:
    """Scenes of 32 x 32, by a model of latents."""
    model, state = newest(run)
    about = f"`{run}`, {state}, told nothing; scenes of seed 63000001; methods that work through a decoder"
    problems, judge = ("blur:1.5", "downsample:4", "random:0.3", "box:10,10,12,12"), metrics.shapes.judge("use").net
    x = Scenes(63_000_001)(0, n).images
    return World("shapes", about, model, x, problems, judge.eval(), "the judge in use", ("ddnm", "resample", "dps"))


def scores(a: Tensor, b: Tensor, net: Any, features: str) -> tuple[float, float, float]:
    """PSNR, SSIM (of pictures enlarged to at least 24 pixels) and perceptual distance."""
    k = math.ceil(24 / a.shape[-1])
    large = [x.repeat_interleave(k, -1).repeat_interleave(k, -2) for x in (a, b)]
    return (
        metrics.psnr(a, b).value,
        metrics.ssim(*large).value,
        metrics.perceptual(a, b, net, features=features).value,
    )


def table(world: World, nfe: int, names: list[str], images: Path) -> str:
    """Every method on every problem, as Markdown; a picture of some of them."""
    x, rows, spent, strips = world.x, {}, {}, []
    size, z = tuple(x.shape[-2:]), start(world.model, x)
    for text in world.problems:
        A = restore.operator(text, size)  # type: ignore[arg-type]
        y = GaussianNoise(SIGMA)(A(x), seed=11)
        y = A(y) if isinstance(A, Mask) else y
        outs = {"least squares": A.pinv(y).clamp(-1, 1)} if isinstance(A, LinearOperator) else {}
        for name in names:
            model, began = Counted(world.model), time.monotonic()
            try:
                outs[name] = restore.restored(model, A, y, z, method=name, sigma=SIGMA, nfe=nfe, seed=1).detach()
            except TypeError:  # a method for masks only
                continue
            spent[name] = (model.nfe, model.vjps)
            print(f"{world.name} {text} {name}: {time.monotonic() - began:.0f} s", flush=True)
        for name, out in outs.items():
            rows.setdefault(name, {})[text] = scores(out, x, world.net, world.features)
            print(f"  {name:14s} " + " ".join(f"{v:8.3f}" for v in rows[name][text]), flush=True)
        seen = restore.shown(y[:8], A, tuple(x.shape[1:]))
        strips.append(torch.cat([x[:8], seen, *(outs[k][:8] for k in world.shown if k in outs)]))
    for text, strip in zip(world.problems, strips, strict=True):
        file = images / f"inverse_{world.name}_{text.split(':')[0]}.png"
        about = {"made by": "benchmarks/inverse_pictures.py", "operator": text, "sigma": SIGMA, "nfe": nfe}
        pictures.save_png(pictures.grid(strip, min(8, len(x)), scale=max(1, 56 // size[0]), gap=1), file, about)
    head = "".join(f" {p} |" for p in world.problems)
    lines = [
        f"PSNR in dB for each problem, then SSIM and perceptual distance (not LPIPS: {world.features}, all weights 1), "
        f"means over the problems a method can do. Prior: {world.about}. {len(x)} pictures, noise sigma {SIGMA:g}, one "
        f"sample each, options as in `suffuse.recipes.restore.METHODS`, the same for all sets. One sample is not the "
        "posterior's mean: a method that draws honestly pays up to 3 dB for it.",
        "",
        f"| method |{head} SSIM | perceptual | NFE | vjp |",
        "|---|" + "---:|" * (len(world.problems) + 4),
    ]

    def mean(name: str, k: int) -> float:
        return sum(v[k] for v in rows[name].values()) / len(rows[name])

    whole = [k for k in rows if len(rows[k]) == len(world.problems)]
    part = [k for k in rows if k not in whole]
    for name in [*sorted(whole, key=lambda k: -mean(k, 0)), *part]:
        each = " | ".join(f"{rows[name][p][0]:.2f}" if p in rows[name] else "" for p in world.problems)
        cost = " | ".join(map(str, spent.get(name, (0, 0))))
        lines.append(f"| {name} | {each} | {mean(name, 1):.3f} | {mean(name, 2):.3f} | {cost} |")
    for text in world.problems:
        kind = text.split(":")[0]
        lines += ["", f"![{text}](images/inverse_{world.name}_{kind}.png)"]
    lines += [
        "",
        f"Rows of the pictures: before, measurement, then {', '.join(world.shown)} as far as they apply.",
    ]
    return "\n".join(lines)


LATENT = ["ddnm", "resample", "dps", "flowchef", "reddiff", "flowdps"]
"""Restoring through a decoder; daps and pnpdm walk in the data at each step, ten times as long."""
HOLE, WIDE = (10, 10, 12, 12), (5, 5, 22, 22)


def inpainted(model: Any, n: int, nfe: int, method: str) -> tuple[dict[str, Any], Tensor]:
    """PSNR over the masked baseline, and the seam, of scenes with a hole; the model is told nothing."""
    x = Scenes(61_000_003)(0, n).images
    A = Mask.box((32, 32), HOLE)
    y = A(x)
    parts = [
        restore.filled(model, A, y[i : i + 64], start(model, y[i : i + 64], i), method=method, nfe=nfe, seed=i)
        for i in range(0, n, 64)
    ]
    out = torch.cat(parts)
    assert torch.equal(A(out), y), "known pixels are as they were"
    gain = metrics.psnr(out, x).value - metrics.psnr(y, x).value
    seam = restore.seams(out, A.known).mean() / restore.seams(x, A.known).mean()
    found = {"baseline": metrics.psnr(y, x).value, "gain": gain, "seam": seam.item(), "n": n}
    return found, torch.cat([x[:12], y[:12], out[:12]])


def asked(n: int, seed: int = 62_000_003) -> tuple[Tensor, list[str]]:
    """Scenes of one object within the wide hole, and captions of another object in its place."""
    first, found, told = 0, [], []
    top, left, h, w = WIDE
    while len(found) < n:
        scenes = Scenes(seed, counts=(1.0,), full=True)(first, 256)
        first += 256
        a = scenes.attributes
        g = torch.Generator().manual_seed(seed + first)
        shape = (a.shape + torch.randint(1, len(SHAPES), a.shape.shape, generator=g)) % len(SHAPES)
        colour = (a.colour + torch.randint(1, len(COLOURS), a.colour.shape, generator=g)) % len(COLOURS)
        new = replace(a, shape=shape, colour=colour, fill=torch.zeros_like(a.fill))
        captions = scenes.say(new)
        from suffuse.data.shapes.attributes import DIAMETERS

        half = torch.tensor(DIAMETERS)[a.size[:, 0]] * (a.side / 64) + 1
        inside = (a.x[:, 0] - half > left) & (a.x[:, 0] + half < left + w)
        inside &= (a.y[:, 0] - half > top) & (a.y[:, 0] + half < top + h)
        fits = inside & (colour[:, 0] != a.background) & ~held_out(shape, colour)[:, 0]
        for i in fits.nonzero()[:, 0].tolist():
            found.append(scenes.images[i])
            told.append(captions[i])
    return torch.stack(found[:n]), told[:n]


def filled_by_text(model: Any, n: int, nfe: int, method: str, w: float) -> tuple[dict[str, Any], Tensor]:
    """How often the held-out judge sees the asked object, and only it, in the hole."""
    x, told = asked(n)
    A, text = Mask.box((32, 32), WIDE), model.conditions["text"]
    y, parts = A(x), []
    for i in range(0, n, 64):
        asking = model.given(text=text.ids(told[i : i + 64], length=shapes.WORDS))
        spoken = guide(asking, model, w, between=shapes.SAMPLING["between"])
        z = start(model, y[i : i + 64], i)
        parts.append(restore.filled(spoken, A, y[i : i + 64], z, method=method, nfe=nfe, seed=i))
    out, judge = torch.cat(parts), metrics.shapes.judge("held_out")
    assert torch.equal(A(out), y), "known pixels are as they were"
    right = judge.match(told, out).right
    both = right["shape"] & right["colour"] & right["count"]
    share = metrics.proportion(
        int(both.sum()), n, "share of pictures whose one object is of the asked shape and colour"
    )
    old, before = judge.match(told, x).right, parse(told)
    found = {"object": share, "before": (old["shape"] & old["colour"]).double().mean().item(), "n": len(before)}
    found |= {k: right[k].double().mean().item() for k in ("shape", "colour", "count", "background")}
    seam = restore.seams(out, A.known).mean() / restore.seams(x, A.known).mean()
    return found | {"seam": seam.item()}, torch.cat([x[:12], y[:12], out[:12]])


def of_shapes(run: Path, n: int, nfe: int, images: Path, fills: list[str], w: float) -> str:
    """Inpainting and fill by text, by several methods, as Markdown."""
    model, state = newest(run)
    lines = [
        f"Prior: `{run}`, {state}. {nfe} evaluations, {n} pictures each; known pixels are compared bit by bit. "
        f"Inpainting: a hole of {HOLE[2]} x {HOLE[3]} pixels in the middle of scenes, the model told nothing. PSNR is "
        "of the whole picture, over that of the picture with a grey hole (bar: at least 5 dB); the seam is the mean "
        "jump across the hole's edge over that of the originals (bar: at most 1.2). Fill by text: the one object of a "
        f"scene is hidden by a hole of {WIDE[2]} x {WIDE[3]}, and another is asked for by its caption, w = {w:g} as "
        "the model's own sampling has it; the held-out judge says whether the picture shows one object, of that shape "
        "and colour (bar: 90 %). That hole's edge lies on background alone, so its seam is over a small number.",
        "",
        "| method | PSNR gain, dB | seam | asked object in the hole | shape | colour | count | background | its seam |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in fills:
        began = time.monotonic()
        a, one = inpainted(model, n, nfe, method)
        print(method, a, f"{time.monotonic() - began:.0f} s", flush=True)
        b, two = filled_by_text(model, n, nfe, method, w)
        print(method, b, f"{time.monotonic() - began:.0f} s", flush=True)
        share: metrics.Measured = b["object"]
        low, high = share.to_json()["interval"]
        rest = " | ".join(f"{b[k]:.3f}" for k in ("shape", "colour", "count", "background", "seam"))
        lines.append(
            f"| {method} | {a['gain']:.2f} | {a['seam']:.3f} | {share.value:.3f} [{low:.3f}, {high:.3f}] | {rest} |"
        )
        about = {"made by": "benchmarks/inverse_pictures.py", "run": str(run), "state": state, "method": method}
        for kind, strip in (("inpaint", one), ("fill", two)):
            pictures.save_png(pictures.grid(strip, 12, scale=2), images / f"inverse_shapes_{kind}_{method}.png", about)
    lines += ["", f"The baseline of inpainting is {a['baseline']:.2f} dB. Rows of the pictures: before, known, after."]
    for method in fills:
        lines += ["", f"![inpainting by {method}](images/inverse_shapes_inpaint_{method}.png)"]
        lines += ["", f"![fill by text, {method}](images/inverse_shapes_fill_{method}.png)"]
    return "\n".join(lines)


def main() -> None:
    """Measure the sets named, and write their sections."""
    parse = argparse.ArgumentParser()
    parse.add_argument("sets", nargs="+", choices=["digits", "fashion", "shapes"])
    parse.add_argument("--run", type=Path, default=None, help="of the prior; by default runs/SET, and shapes itself")
    parse.add_argument("--n", type=int, default=None, help="pictures; by default 64 digits, 16 clothes, 400 scenes")
    parse.add_argument("--nfe", type=int, default=None, help="evaluations; by default 50, and 24 for shapes")
    parse.add_argument("--methods", nargs="+", default=None)
    parse.add_argument("--w", type=float, default=shapes.SAMPLING["w"], help="guidance of the fill by text")
    parse.add_argument("--out", type=Path, default=Path("docs/inverse.md"))
    given = parse.parse_args()
    images = given.out.parent / "images"
    for name in given.sets:
        run, began = given.run or Path(name if name == "shapes" else f"runs/{name}"), time.process_time()
        if name == "shapes":
            fills = given.methods or ["ddnm", "repaint"]
            text = of_shapes(run, given.n or 400, given.nfe or 24, images, fills, given.w)
            text += "\n\n" + table(of_scenes(run, 16), 50, LATENT, images)
            title = "Scenes of the shapes world: filling and restoring"
        else:
            make: Callable[[Path, int], World] = {"digits": of_digits, "fashion": of_fashion}[name]
            world = make(run, given.n or {"digits": 64, "fashion": 16}[name])
            text = table(world, given.nfe or 50, given.methods or list(restore.METHODS), images)
            title = {"digits": "Digits", "fashion": "Fashion-MNIST"}[name]
        spent = f"Made by `python benchmarks/inverse_pictures.py {' '.join(sys.argv[1:])}` "
        spent += f"({time.process_time() - began:.0f} s of one core)."
        section(given.out, name, f"## {title}\n\n{spent} {text}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
