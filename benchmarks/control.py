"""Controls and personal models on the shapes world: trained, and the tables of docs/control.md, by the held-out judge.

    python benchmarks/control.py train  --kind edges [--base shapes] [--steps 4000]   # resumes; also --kind pose
    python benchmarks/control.py edges  [--n 400]                  # base, with and without prompt, by strength
    python benchmarks/control.py pose   [--n 400]                  # trains the reader of joints first, once
    python benchmarks/control.py two    [--n 400]                  # edges and pose together
    python benchmarks/control.py style  [--n 400]                  # LoRA of dotted outlines from 100 pictures
    python benchmarks/control.py dreambooth [--subjects 0 1] [--n 100]   # with and without prior preservation

Everything trained lies in runs/control/NAME and is taken up again where it was stopped; --tag keeps the runs of another
base apart (`--base runs/shapes-unet --tag unet`; obedience comes within 250 steps: `--tag early --steps 500
--watch-every 20` shows how). Each command prints a table and writes runs/control/NAME.json. Edges
are Canny's of the pictures, patterns of backgrounds included; chance is their F1 against another scene's.
"""

import argparse
import json
import re
from pathlib import Path

import torch

import suffuse as sf
from subjects import CONTEXTS, ideal, obeyed, recognised, variety
from suffuse import control, metrics, pictures
from suffuse.data.shapes import COLOURS, STYLES, SUBJECTS, Scenes, captions, parse, subject
from suffuse.data.shapes.attributes import outlineable
from suffuse.data.shapes.render import Batch
from suffuse.recipes import control as recipe
from suffuse.recipes import personalise, shapes
from suffuse.recipes.draw import decoded, encoded

ROOT, NFE, W, SEED = Path("runs/control"), 20, shapes.SAMPLING["w"], 1_000_003


def folder(args, name: str) -> Path:
    """Where a run of this base lies."""
    return ROOT / (f"{name}-{args.tag}" if args.tag else name)


def told(title: str, rows: list[tuple]) -> dict:
    """Print a table of measurements, and give it as JSON."""
    print(f"\n{title}\n")
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for label, values in rows:
        cells = [str(values[name]) if name in values else "" for name in names]
        print(f"| {label} | " + " | ".join(cells) + " |")
    return {label: {k: v.to_json() for k, v in values.items()} for label, values in rows}


def bar(what: str, value: float, sign: str, wanted: float) -> None:
    """Say whether a ratio or share meets what is asked of it; without a sign nothing is asked."""
    met = {">=": value >= wanted, "<=": value <= wanted}.get(sign)
    print(f"{what}: {value:.3f}" + ("" if met is None else f" ({sign} {wanted:g}: {'met' if met else 'MISSED'})"))


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
    how = {"kind": args.kind, "method": args.method, "steps": args.steps, "watch_every": args.watch_every}
    made = recipe.train(args.base, folder(args, args.kind), resume=True, **how)
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
    every = torch.ones_like(batch.images[:, :1])
    rows.append(("edges everywhere", {"edge F1": metrics.mean(
        control.edge_f1(every, control.canny(batch.images)), "mean F1 of edges in every pixel")}))  # fmt: skip
    rows.append(("chance: real, another scene", {"edge F1": f1(batch.images.roll(1, 0), batch.images, "by chance")}))
    rows.append(
        (
            "real scenes",
            {"edge F1": f1(batch.images, batch.images, "real"), "caption match": match(batch, batch.images)},
        )
    )
    write(args, "edges", {"table": told("Edges to pictures", rows)})
    by = {name: {k: v.value for k, v in values.items()} for name, values in rows}
    free, edged, silent = by["base, prompt"], by["edges, prompt"], by["edges, no prompt"]
    bar("edge F1", edged["edge F1"], ">=", 0.85)
    bar("caption match over the base's", edged["caption match"] / free["caption match"], ">=", 0.95)
    bar("edge F1 without a prompt over with", silent["edge F1"] / edged["edge F1"], ">=", 0.9)


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
    for name, given, text, both in (
        ("base, prompt", {}, True, False),
        ("pose, prompt", {"pose": picture}, True, False),
        ("pose, prompt, both guided", {"pose": picture}, True, True),
        ("pose, no prompt", {"pose": picture}, False, False),
    ):
        x = recipe.draw(model, batch, told=given, text=text, w=W, nfe=NFE, seed=SEED, both=both)
        rows.append((name, joints(reader, x, wanted, name) | {"caption match": match(batch, x)}))
        if name == "pose, prompt":
            shown = torch.stack([picture, x, batch.images], 1)[:16].flatten(0, 1)
            pictures.save_png(pictures.grid(shown, 12, scale=2), folder(args, "pose") / "pictures.png", {"seed": SEED})
    back = decoded(model, encoded(model, batch.images))
    rows.append(("real scenes, through the codec", joints(reader, back, wanted, "real, through the codec")))
    rows.append(
        ("real scenes", joints(reader, batch.images, wanted, "real") | {"caption match": match(batch, batch.images)})
    )
    write(args, "pose", {"table": told("Stick figures to pictures", rows), "reader": ceiling})
    for name, values in rows[1:3]:
        bar(f"figures within 1 pixel, {name}", values["figures within 1 pixel"].value, ">=", 0.9)


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
        if name == "both":
            shown = torch.stack([e.expand(-1, 3, -1, -1), p, x, batch.images], 1)[:12].flatten(0, 1)
            pictures.save_png(pictures.grid(shown, 12, scale=2), folder(args, "two.png"), {"seed": SEED})
    write(args, "two", {"table": told("Two controls together", rows)})
    (_, edged), (_, posed), (_, both) = rows
    for name, alone in (("edge F1", edged), ("skeleton F1", posed)):
        bar(f"{name} of both over alone", both[name].value / alone[name].value, ">=", 0.9)


def without_fill(texts: list[str]) -> list[str]:
    """Captions that do not say how objects are filled; "dotted" stays where a background is."""
    return [re.sub(r"\b(filled|outlined|dotted(?! \w+ background)) ", "", text) for text in texts]


def style(args) -> None:
    """Dotted outlines from 100 pictures whose captions do not say so."""
    world = Scenes(5, dotted=True)(0, 100)
    base = recipe.base_of(args.base)[0]
    said = without_fill(world.captions)
    out = folder(args, "style")
    how = {"method": "style", "captions": said, "steps": args.steps, "lr": args.lr}
    made = personalise.train(args.base, out, world.images, resume=True, **how)
    lora = sf.adapters.load_lora(base, out / "lora.safetensors")
    lora.net.bfloat16()  # as the base ships, and as fast
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
    real = Scenes(SEED, dotted=True)(0, args.n)
    back, spec = decoded(base, encoded(base, real.images)), parse(without_fill(real.captions))
    fifth = ("real dotted scenes, through the codec", {"caption match": judge.report(spec, back)["match"]})
    table = told("Style of dotted outlines", [first, second, third, fourth, fifth])
    write(args, "style", {"table": table, "share trained": sf.adapters.share(lora), "seconds": made.train_seconds})
    bar("dotted", second[1]["dotted"].value, ">=", 0.9)
    bar("loss of caption match", first[1]["caption match"].value - second[1]["caption match"].value, "<=", 0.05)


def dreambooth(args) -> None:
    """A textured object from its four pictures, in new contexts; and what became of its class."""
    judge, tables = metrics.shapes.judge("held_out"), {}
    base, contexts = recipe.base_of(args.base)[0], [CONTEXTS[i % len(CONTEXTS)] for i in range(args.n)]

    def seen(number: int, x: torch.Tensor) -> dict:
        found, place = recognised(number, x)
        right = int(obeyed(contexts, x, place, judge).sum())
        each = [f"{found[i :: len(CONTEXTS)].float().mean():.2f}" for i in range(len(CONTEXTS))]
        print(f"recognised by context: {', '.join(each)}", flush=True)
        return {
            "subject recognised": metrics.proportion(int(found.sum()), args.n, "read by its own drawing"),
            "context obeyed": metrics.proportion(right, args.n, "all else that the prompt says holds"),
        }

    def of_class(model, noun: str) -> dict:
        x = pictured(model, {"text": f"a {noun}"}, args.n, SEED + 1)
        return dict(zip(("class variety", "class shown"), variety(noun, x, judge), strict=True))

    for number in args.subjects:
        shape, colour, texture = SUBJECTS[number]
        four = subject(number)
        where = [
            f"a [v] on a {STYLES[style]} {COLOURS[ground]} background"
            for style, ground in zip(four.attributes.style.tolist(), four.attributes.background.tolist(), strict=True)
        ]
        fake = recognised(number, Scenes(9)(0, 400).images)[0]
        print(f"\n{colour} {shape} with {texture}: recognised in {int(fake.sum())} of 400 other scenes", flush=True)
        real = ideal(number, contexts)
        rows = [
            ("drawn", seen(number, real)),
            ("drawn, through the codec", seen(number, decoded(base, encoded(base, real)))),
            ("base", of_class(base, shape)),
        ]
        for name, prior in (("with prior preservation", 1.0), ("without", 0.0)):
            out = folder(args, f"dreambooth-{number}" + ("" if prior else "-without"))
            made = personalise.train(
                args.base, out, four.images, token="[v]", noun=shape, method=args.method, prior=prior,
                captions=None if args.silent else where, steps=args.steps, lr=args.lr, resume=True,
            )  # fmt: skip
            model = made.model()
            model.net.bfloat16()  # as models ship, and as fast
            text = [c.text.format(f"[v] {shape}" if args.phrase == "both" else "[v]") for c in contexts]
            x = pictured(model, {"text": text}, args.n, SEED)
            rows.append((name, seen(number, x) | of_class(model, shape)))
            pictures.save_png(pictures.grid(x[:40], 10, scale=2), out / "pictures.png", {"text": text[:5]})
        tables[f"{colour} {shape}"] = told(f"DreamBooth: {colour} {shape} with {texture}", rows)
        kept = {name: values["class variety"].value for name, values in rows[2:]}
        for name in list(kept)[1:]:
            bar(f"loss of class variety {name}", 1 - kept[name] / kept["base"], "<=" if name != "without" else "", 0.1)
    write(args, "dreambooth", {"table": tables})


def main() -> None:
    """Run one of the parts."""
    parts = {f.__name__: f for f in (train, edges, pose, two, style, dreambooth)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--base", default="shapes")
    parser.add_argument("--tag", default="")
    parser.add_argument("--kind", default="edges", choices=recipe.HINTS)
    parser.add_argument("--method", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--watch-every", type=int, default=250, help="steps of a control between looks at obedience")
    parser.add_argument("--lr", type=float, default=None, help="of style and dreambooth")
    parser.add_argument("--subjects", type=int, nargs="+", default=list(range(len(SUBJECTS))))
    parser.add_argument("--silent", action="store_true", help="the subject's pictures come without captions")
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
