"""Controls and personal models on the shapes world: trained, and the tables of docs/control.md, by the held-out judge.

    python benchmarks/control.py train  --kind edges [--base runs/shapes] [--steps 4000]   # resumes; also --kind pose
    python benchmarks/control.py edges  [--n 400]                  # base, with and without prompt, by strength
    python benchmarks/control.py pose   [--n 400]                  # trains the reader of joints first, once
    python benchmarks/control.py two    [--n 400]                  # edges and pose together
    python benchmarks/control.py style  [--n 400]                  # LoRA of dotted outlines from 100 pictures
    python benchmarks/control.py dreambooth [--subjects 4] [--n 100]   # with and without prior preservation

Everything trained lies in runs/control/NAME and is taken up again where it was stopped; --tag keeps the runs of another
base apart (`--base runs/shapes-unet --tag unet`). Each command prints a table and writes runs/control/NAME.json. Edges
are Canny's of the pictures, patterns of backgrounds included; chance is their F1 against another scene's.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import torch

import suffuse as sf
from suffuse import control, metrics, pictures
from suffuse.data.shapes import SHAPES, SUBJECTS, Scenes, captions, parse, subject
from suffuse.data.shapes.attributes import DIAMETERS, outlineable
from suffuse.data.shapes.render import Batch
from suffuse.recipes import control as recipe
from suffuse.recipes import personalise, shapes
from suffuse.recipes.draw import decoded

ROOT, NFE, W, SEED = Path("runs/control"), 20, shapes.SAMPLING["w"], 1_000_003


def folder(args, name: str) -> Path:
    """Where a run of this base lies."""
    return ROOT / (f"{name}-{args.tag}" if args.tag else name)


def told(title: str, rows: list[tuple]) -> dict:
    """Print a table of measurements, and give it as JSON."""
    print(f"\n{title}\n")
    names = [name for name, _ in rows[0][1].items()]
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for label, values in rows:
        cells = [str(values[name]) if name in values else "" for name in names]
        print(f"| {label} | " + " | ".join(cells) + " |")
    return {label: {k: v.to_json() for k, v in values.items()} for label, values in rows}


def write(args, name: str, data: dict) -> None:
    """Keep a result beside its runs."""
    file = folder(args, name).with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"n": args.n, "nfe": NFE, "w": W, "base": args.base} | data, indent=2) + "\n")


def f1(x: torch.Tensor, wanted: torch.Tensor, what: str) -> metrics.Measured:
    """Mean F1 of edges within one pixel."""
    return metrics.mean(control.edge_f1(control.canny(x), control.canny(wanted)), f"mean F1 of edges {what}")


def match(batch: Batch, x: torch.Tensor) -> metrics.Measured:
    """Share of pictures that show all that the caption says, by the held-out judge."""
    return metrics.shapes.judge("held_out").report(batch.captions, x)["match"]


def pictured(model, given: dict, n: int, seed: int) -> torch.Tensor:
    """n pictures, guided to what is given."""
    return decoded(model, shapes.sampled(model.given(**given), model, n, seed, nfe=NFE))


def train(args) -> None:
    """Train a control, and plot its obedience while it learned."""
    made = recipe.train(
        args.base, folder(args, args.kind), kind=args.kind, method=args.method, steps=args.steps, resume=True
    )
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    seen = [e for e in lines if "f1" in e]
    about = {"made by": "benchmarks/control.py", **made.settings}
    pictures.curves(seen, ["f1"], made.path / "curve.png", about, "edge F1, no prompt, 8 evaluations")
    jumps = [(b["f1"] - a["f1"], b["step"]) for a, b in zip(seen, seen[1:], strict=False)]
    if jumps:
        print(f"the largest rise of F1 between two looks: {max(jumps)[0]:.3f}, up to step {max(jumps)[1]}")


def edges(args) -> None:
    """Edges to pictures of unseen scenes: with and without the prompt, by strength and interval."""
    model = recipe.opened(folder(args, "edges"), base=args.base)
    batch = Scenes(SEED)(0, args.n)
    picture = recipe.hint("edges", batch)
    ways = {
        "base, prompt": ({}, True),
        "edges, prompt": ({"edges": picture}, True),
        "edges, no prompt": ({"edges": picture}, False),
        "edges at 0.5, prompt": ({"edges": control.Hint(picture, 0.5)}, True),
        "edges for t in 0.5 to 1, prompt": ({"edges": control.Hint(picture, between=(0.5, 1.0))}, True),
    }
    rows = []
    for name, (given, text) in ways.items():
        x = recipe.draw(model, batch, told=given, text=text, w=W, nfe=NFE, seed=SEED)
        rows.append((name, {"edge F1": f1(x, batch.images, name), "caption match": match(batch, x)}))
        if name == "edges, prompt":
            pairs = torch.stack([picture.expand(-1, 3, -1, -1), x, batch.images], 1)[:16].flatten(0, 1)
            pictures.save_png(pictures.grid(pairs, 12, scale=2), folder(args, "edges") / "pictures.png", {"seed": SEED})
    rows.append(("chance: real, another scene", {"edge F1": f1(batch.images.roll(1, 0), batch.images, "by chance")}))
    rows.append(
        (
            "real scenes",
            {"edge F1": f1(batch.images, batch.images, "real"), "caption match": match(batch, batch.images)},
        )
    )
    write(args, "edges", {"table": told("Edges to pictures", rows)})


def figures(args, skip_blank: bool = True) -> tuple[Batch, torch.Tensor]:
    """Unseen scenes with exactly one figure, and its joints."""
    batch = recipe.scenes("pose", SEED, torch.arange(2 * args.n))
    rows = recipe.alone(batch)[0].nonzero()[: args.n, 0]
    index = recipe.TRIES * torch.arange(2 * args.n)
    has = (Scenes(SEED)[(index[:, None] + torch.arange(recipe.TRIES)).flatten()].attributes.shape == recipe.FIGURE).any(
        1
    )
    first = has.view(-1, recipe.TRIES).to(torch.int8).argmax(1)
    chosen = Scenes(SEED)[(index + first)[rows]]
    return chosen, recipe.alone(chosen)[1]


def joints(reader, x: torch.Tensor, wanted: torch.Tensor, what: str) -> dict:
    """Mean joint error, and the share of figures within one pixel."""
    with torch.no_grad():
        error = control.joint_error(torch.cat([reader(part) for part in x.split(100)]), wanted)
    return {
        "joint error in pixels": metrics.mean(error, f"mean joint error, {what}"),
        "figures within 1 pixel": metrics.proportion(
            int((error <= 1).sum()), len(error), f"share within 1 pixel, {what}"
        ),
    }


def pose(args) -> None:
    """Stick figures to pictures of unseen scenes with one figure."""
    reader, ceiling = recipe.reader(ROOT / "reader")
    model = recipe.opened(folder(args, "pose"), base=args.base)
    batch, wanted = figures(args)
    picture = recipe.hint("pose", batch)
    rows = []
    for name, given, text in (
        ("base, prompt", {}, True),
        ("pose, prompt", {"pose": picture}, True),
        ("pose, no prompt", {"pose": picture}, False),
    ):
        x = recipe.draw(model, batch, told=given, text=text, w=W, nfe=NFE, seed=SEED)
        rows.append((name, joints(reader, x, wanted, name) | {"caption match": match(batch, x)}))
    rows.append(
        ("real scenes", joints(reader, batch.images, wanted, "real") | {"caption match": match(batch, batch.images)})
    )
    write(args, "pose", {"table": told("Stick figures to pictures", rows), "reader": ceiling})


def two(args) -> None:
    """Edges and pose of one scene together, against each alone."""
    reader, _ = recipe.reader(ROOT / "reader")
    model = recipe.opened(folder(args, "edges"), folder(args, "pose"), base=args.base)
    batch, wanted = figures(args)
    e, p = recipe.hint("edges", batch), recipe.hint("pose", batch)
    rows = []
    for name, given in (("edges alone", {"edges": e}), ("pose alone", {"pose": p}), ("both", {"edges": e, "pose": p})):
        x = recipe.draw(model, batch, told=given, text=True, w=W, nfe=NFE, seed=SEED)
        line = control.skeleton(wanted[:, None], (32, 32)).amax(1, keepdim=True)
        read = torch.cat([reader(part) for part in x.split(100)]).detach()
        drawn = control.skeleton(read[:, None], (32, 32)).amax(1, keepdim=True)
        limbs = metrics.mean(control.edge_f1(drawn, line), f"mean F1 of the skeletons, {name}")
        values = {"edge F1": f1(x, batch.images, name), "skeleton F1": limbs}
        rows.append((name, values | joints(reader, x, wanted, name) | {"caption match": match(batch, x)}))
    write(args, "two", {"table": told("Two controls together", rows)})


def without_fill(texts: list[str]) -> list[str]:
    """Captions that do not say how objects are filled; "dotted" stays where a background is."""
    return [re.sub(r"\b(filled|outlined|dotted(?! \w+ background)) ", "", text) for text in texts]


def style(args) -> None:
    """Dotted outlines from 100 pictures whose captions do not say so."""
    world = Scenes(5, dotted=True)(0, 100)
    base = recipe.base_of(args.base)[0]
    said = without_fill(world.captions)
    out = folder(args, "style")
    made = personalise.train(args.base, out, world.images, method="style", captions=said, steps=args.steps, resume=True)
    lora = sf.adapters.load_lora(base, out / "lora.safetensors")
    judge = metrics.shapes.judge("held_out")
    asked = without_fill(captions(args.n, SEED))
    spec = parse(asked)

    def row(model, name):
        words = model.conditions["text"].ids(asked, length=shapes.WORDS)
        x = pictured(model, {"text": words}, args.n, SEED)
        read = judge.read(x)
        can = read.present & (read.shape >= 0) & outlineable(read.shape, read.size)
        hits, n = int((can & (read.fill == 2)).sum()), int(can.sum())
        how = f"share of objects that can be dotted and are, {name}"
        return x, (
            name,
            {"dotted": metrics.proportion(hits, max(n, 1), how), "caption match": judge.report(spec, x)["match"]},
        )

    (plain, first), (styled, second) = row(base, "base"), row(lora, "with the style")
    half, third = row(sf.adapters.scaled(lora, 0.5), "at strength 0.5")
    again, fourth = row(sf.adapters.detached(lora), "detached")
    print(f"detached, the same bits as the base: {torch.equal(again, plain)}")
    x = torch.stack([plain, half, styled], 1)[:16].flatten(0, 1)
    pictures.save_png(pictures.grid(x, 12, scale=2), out / "pictures.png", {"seed": SEED})
    table = told("Style of dotted outlines", [first, second, third, fourth])
    write(args, "style", {"table": table, "share trained": sf.adapters.share(lora), "seconds": made.train_seconds})


def placed(number: int, x: torch.Tensor, y: torch.Tensor, plain: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A subject drawn with its centre at (x, y), (N, 3, 32, 32), and where it covers, (N, 32, 32); or `plain`."""
    one = subject(number)
    rows = torch.zeros(len(x), dtype=torch.int64)

    def at(v: torch.Tensor) -> torch.Tensor:
        return torch.stack([v, torch.full_like(v, -1.0)], 1)

    attributes = replace(one.attributes[rows], x=at(x), y=at(y))
    decor = replace(one.decor, **{k: v[rows] for k, v in vars(one.decor).items()})
    decor = replace(decor, texture=torch.full_like(decor.texture, -1)) if plain else decor
    drawn = Batch(attributes, decor, 32, one.say)
    return drawn.images, drawn.masks[:, 0]


def recognised(number: int, images: torch.Tensor) -> torch.Tensor:
    """(N,) bool: whether some place in a picture looks like the subject, by its own drawing and no network.

    The mean absolute difference of pixels well inside it, at its best place on a grid of half pixels, is below 0.25,
    and below that of every other subject, and of the same shape in its first colour alone.
    """
    r = DIAMETERS[2] / 2
    grid = torch.arange(r - 1, 32 - r + 1.01, 0.5)
    x, y = (g.flatten() for g in torch.meshgrid(grid, grid, indexing="xy"))

    def distance(k: int, plain: bool = False) -> torch.Tensor:
        drawn, mask = placed(k, x, y, plain)
        inside = (mask > 0.95).float()
        best = torch.full((len(images),), torch.inf)
        for d, m in zip(drawn.split(16), inside.split(16), strict=True):
            gap = ((images[:, None] - d).abs().mean(2) * m).flatten(2).sum(2) / m.flatten(1).sum(1)
            best = torch.minimum(best, gap.amin(1))
        return best

    mine = distance(number)
    others = [distance(k) for k in range(len(SUBJECTS)) if k != number] + [distance(number, plain=True)]
    return (mine < 0.25) & (mine < torch.stack(others).amin(0))


CONTEXTS = (
    "a {} on a striped green background",
    "a {} above a small blue ring",
    "a {} to the left of a small pink cross on a purple background",
    "a {} on a gradient pink background",
    "a {} below a small white star on a blue background",
)


def dreambooth(args) -> None:
    """A textured object from its four pictures, in new contexts; and what became of its class."""
    judge, tables = metrics.shapes.judge("held_out"), {}
    for number in range(args.subjects):
        shape, colour, texture = SUBJECTS[number]
        real = recognised(number, subject(number).images)
        fake = recognised(number, Scenes(9)(0, 400).images)
        print(f"\n{colour} {shape} with {texture}: its own pictures recognised {int(real.sum())} of 4, "
              f"of 400 other scenes {int(fake.sum())}")  # fmt: skip
        rows = [_class(recipe.base_of(args.base)[0], shape, "base", args.n, judge)]
        for name, prior in (("with prior preservation", 1.0), ("without", 0.0)):
            out = folder(args, f"dreambooth-{number}" + ("" if prior else "-without"))
            made = personalise.train(
                args.base, out, subject(number).images, token="[v]", noun=shape, method=args.method, prior=prior,
                steps=args.steps, resume=True,
            )  # fmt: skip
            model = made.model()
            asked = [CONTEXTS[i % len(CONTEXTS)] for i in range(args.n)]
            text = [a.format(f"[v] {shape}" if args.phrase == "both" else "[v]") for a in asked]
            x = pictured(model, {"text": text}, args.n, SEED)
            spec = parse([a.format("shape") for a in asked])
            told_ = judge.match(spec, x)
            share = metrics.proportion(
                int(recognised(number, x).sum()), args.n, "subject recognised by its own drawing"
            )
            obeyed = metrics.proportion(int(told_.all.sum()), args.n, "everything else in the prompt holds")
            label, kept = _class(model, shape, name, args.n, judge)
            rows.append((label, {"subject recognised": share, "context obeyed": obeyed, **kept}))
            pictures.save_png(pictures.grid(x[:40], 10, scale=2), out / "pictures.png", {"text": text[:5]})
        rows[0] = (rows[0][0], {"subject recognised": metrics.proportion(0, 1, "not asked"),
                                "context obeyed": metrics.proportion(0, 1, "not asked"), **rows[0][1]})  # fmt: skip
        tables[f"{colour} {shape}"] = told(f"DreamBooth: {colour} {shape} with {texture}", rows)
    write(args, "dreambooth", {"table": tables})


def _class(model, noun: str, name: str, n: int, judge) -> tuple:
    """How various the model's pictures of the class are: distances in the held-out judge's features, and colours."""
    x = pictured(model, {"text": f"a {noun}"}, n, SEED + 1)
    with torch.no_grad():
        whole = judge.net.features(x)[1]
    apart = torch.cdist(whole, whole)
    each = (apart.sum(1) / (n - 1)).float()
    read = judge.read(x)
    is_class = (read.shape[:, :1] == SHAPES.index(noun)).any(1)
    return name, {
        "class diversity": metrics.mean(each, "mean distance of two pictures of the class in the judge's features"),
        "class shown": metrics.proportion(int(is_class.sum()), n, f"share of pictures of 'a {noun}' that show one"),
    }


def main() -> None:
    """Run one of the parts."""
    parts = {f.__name__: f for f in (train, edges, pose, two, style, dreambooth)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--base", default="runs/shapes")
    parser.add_argument("--tag", default="")
    parser.add_argument("--kind", default="edges", choices=recipe.HINTS)
    parser.add_argument("--method", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--phrase", default="alone", choices=("alone", "both"), help='"a [v]", or "a [v] heart"')
    parser.add_argument("--n", type=int, default=400)
    args = parser.parse_args()
    if args.method is None:
        args.method = "controlnet" if args.part == "train" else "dreambooth-lora"
    if args.part == "train":
        args.steps = args.steps or recipe.STEPS
    parts[args.part](args)


if __name__ == "__main__":
    main()
