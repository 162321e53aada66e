"""Distillation on the shapes world, by the held-out judge: score distillation, edits, and students of few steps.

    python benchmarks/distil_shapes.py scores    [--n 400] [--steps 300] [--field siren]   # SDS at 25, VSD at 7.5
    python benchmarks/distil_shapes.py edits     [--n 400] [--steps 300] [--change shape]  # PDS, DDS, SDS, same pairs
    python benchmarks/distil_shapes.py students  [--methods dmd2 meanflow] [--nfe 4] [--steps 1080]

Each command prints a table and its bars, and writes runs/distil_shapes/NAME.json beside pictures. What one descent made
is kept and taken up by the same command; a student is a run folder that resumes. All --n rows of a descent are one
batch. Captions and scenes are of a seed that no training draws. A share meets its bar when the lower end of its
95 % interval is within 3 points of it. Every edit takes the same descent, and a source's PSNR is to be read beside the
share that is changed: a descent too short for a method leaves the picture as it was.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import suffuse as sf
from suffuse import fields, losses, metrics, pictures, samplers
from suffuse.data.shapes import COLOURS, SHAPES, Scenes, captions, held_out
from suffuse.losses import distillation
from suffuse.recipes import distil, edit, shapes
from suffuse.recipes.draw import decoded, encoded, sample_many
from suffuse.recipes.run import Run
from suffuse.training.files import read_tensors, write_tensors

ROOT, SEED, NFE = Path("runs/distil_shapes"), 5_000_011, shapes.EVALUATIONS
STEPS = {"scores": 300, "edits": 300, "students": distil.STEPS}
LR = {"pixels": 0.05, "siren": 0.003}


def told(title: str, rows: list[tuple]) -> dict:
    """Print a table of measurements, and give it as JSON."""
    print(f"\n{title}\n")
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for label, values in rows:
        print(f"| {label} | " + " | ".join(str(values.get(name, "")) for name in names) + " |")
    print()
    return {label: {k: v.to_json() for k, v in values.items()} for label, values in rows}


def bar(what: str, value: float, wanted: float, *, low: float | None = None) -> None:
    """Say whether a number meets what is asked of it; a share by the lower end of its interval."""
    met = value >= wanted if low is None else low >= wanted - 0.03
    print(f"{what}: {value:.3f} (>= {wanted:.3g}: {'met' if met else 'MISSED'})", flush=True)


def write(args, name: str, table: dict) -> None:
    """Keep a result beside its runs."""
    about = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    (ROOT / f"{name}.json").write_text(json.dumps({"options": about, "seed": SEED, "table": table}, indent=2) + "\n")


def kept(args, model, name: str, make: Callable[[], torch.Tensor], *more: str) -> torch.Tensor:
    """The pictures of one descent, of what it ends in or of a file with these settings, and how long it took."""
    about = [name, *more, f"n{args.n}", f"steps{args.steps}", f"lr{args.lr:g}", Run.open(args.base).model_hash[:8]]
    path = ROOT / f"{'-'.join(about)}.safetensors"
    if not path.exists():
        began = time.monotonic()
        z = make()
        write_tensors(path, {"z": z, "minutes": torch.tensor((time.monotonic() - began) / 60)})
    found = read_tensors(path)
    print(f"{name}: {found['minutes'].item():.1f} minutes", flush=True)
    return decoded(model, found["z"])


def shares(prompts: list[str], x: torch.Tensor) -> dict[str, metrics.Measured]:
    """Of pictures that show all that their caption says, and each attribute."""
    found = metrics.shapes.judge("held_out").report(prompts, x)
    return {name: found[name] for name in ("match", "shape", "colour", "relation") if name in found}


def scores(args) -> None:
    """Latents, or a field that renders them, moved to what captions say; all captions in one batch."""
    run = Run.open(args.base)
    model, prompts = run.model(), captions(args.n, SEED)
    spoken = model.given(text=model.conditions["text"].ids(prompts, length=shapes.WORDS))
    field = fields.Pixels(run.shape, spread=0.5) if args.field == "pixels" else fields.Siren(run.shape)

    def descend(loss) -> torch.Tensor:
        start = field.start(args.n, SEED)
        return field(distillation.descend(loss, start, steps=args.steps, lr=args.lr, seed=SEED, field=field))

    def sds(w: float) -> torch.Tensor:
        guided = sf.guide(spoken, model, w)
        return descend(lambda x, share: losses.sds(guided, x, times=distillation.annealed(share)))

    def vsd(w: float) -> torch.Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            own = sf.adapters.lora(model, rank=8).given(**spoken.bound)
        return descend(losses.VSD(sf.guide(spoken, model, w), own, times=distillation.annealed))

    rows = []
    for name, make in (("SDS, w=25", partial(sds, 25.0)), ("VSD, w=7.5", partial(vsd, 7.5))):
        x = kept(args, model, name.split(",")[0].lower(), make, args.field)
        rows.append((name, shares(prompts, x)))
        shown = pictures.grid(x[:64], 8, scale=2)
        pictures.save_png(shown, ROOT / f"{name[:3].lower()}-{args.field}.png", {"seed": SEED})
    z = shapes.sampled(spoken, model, args.n, SEED, nfe=NFE)
    rows.append((f"sampled in {NFE} evaluations", shares(prompts, decoded(model, z))))
    write(args, f"scores-{args.field}", told(f"Score distillation into {args.field}, n={args.n}", rows))
    (_, one), (_, other), _ = rows
    bar("caption match of SDS at 25", one["match"].value, 0.8, low=one["match"].low)
    bar("caption match of VSD at 7.5, against SDS's", other["match"].value, one["match"].value)


def pairs(n: int, change: str) -> tuple[torch.Tensor, list[str], list[str]]:
    """Scenes of one object, their captions, and the captions with another colour or shape: one that training showed."""
    batch = Scenes(SEED, counts=(1.0,), identical=0.0, full=True)(0, n)
    a, count = batch.attributes, len(COLOURS if change == "colour" else SHAPES)
    value, allowed = getattr(a, change).clone(), torch.zeros(n, dtype=torch.bool)
    for turn in range(1, count):
        other = torch.where(allowed[:, None], value, (getattr(a, change) + turn) % count)
        shape, colour = (other, a.colour) if change == "shape" else (a.shape, other)
        fits = ~held_out(shape[:, 0], colour[:, 0]) & (colour[:, 0] != a.background)
        value = torch.where((fits & ~allowed)[:, None], other, value)
        allowed = allowed | fits
    said = batch.say(replace(a, **{change: torch.where(a.present, value, -1)}))
    return batch.images[allowed], *([texts[i] for i in allowed.nonzero()[:, 0]] for texts in (batch.captions, said))


def edits(args) -> None:
    """One attribute of a picture changed to what another caption says; the rest by what is kept of the picture."""
    model, judge = Run.open(args.base).model(), metrics.shapes.judge("held_out")
    x, source, target = pairs(args.n, args.change)
    rows = []
    for name, method, w in (
        ("PDS, w=7.5", "pds", 7.5),
        ("DDS, w=7.5", "dds", 7.5),
        ("SDS, w=7.5", "sds", 7.5),
        ("SDS, w=25", "sds", 25.0),
    ):

        def make(method: str = method, w: float = w) -> torch.Tensor:
            how = {"method": method, "w": w, "steps": args.steps, "lr": args.lr, "seed": SEED}
            return edit.edited(model, x, source=source, target=target, **how)

        after = kept(args, replaced(model), f"edit-{method}-{w:g}", make, args.change)
        right = judge.match(target, after)
        hits = int((right.right[args.change] & right.said[args.change]).sum())
        changed = metrics.proportion(hits, len(x), f"share whose {args.change} is the one asked for, by the judge")
        rows.append(
            (name, {"attribute changed": changed, **shares(target, after), "source PSNR": metrics.psnr(after, x)})
        )
        shown = torch.stack([x, after], 1)[:32].flatten(0, 1)
        pictures.save_png(pictures.grid(shown, 8, scale=2), ROOT / f"edit-{method}-{w:g}.png", {"to": target[:32]})
    back = decoded(model, encoded(model, x, SEED))
    rows.append(("through the codec alone", {"source PSNR": metrics.psnr(back, x)}))
    write(args, f"edits-{args.change}", told(f"Edits of one {args.change}, n={len(x)}", rows))
    by = dict(rows)
    pds = by["PDS, w=7.5"]
    bar("attribute changed by PDS", pds["attribute changed"].value, 0.9, low=pds["attribute changed"].low)
    for name in ("SDS, w=7.5", "SDS, w=25"):
        bar(f"source PSNR of PDS over that of {name}", pds["source PSNR"].value - by[name]["source PSNR"].value, 5.0)


def replaced(model):
    """The model for pictures that are decoded already."""
    return sf.Denoiser(model.net, model.schedule, model.parameterization)


def students(args) -> None:
    """Students of few steps, with the teacher's guidance folded in, against the teacher at its own budget."""
    teacher, prompts = Run.open(args.base).model(), captions(args.n, SEED)
    words = teacher.conditions["text"].ids(prompts, length=shapes.WORDS)
    z = shapes.sampled(teacher.given(text=words), teacher, args.n, SEED, nfe=NFE)
    rows = [(f"teacher, {NFE} evaluations", shares(prompts, decoded(teacher, z)))]
    for method in args.methods:
        out, how = ROOT / f"{method}-{args.nfe}", {"method": method, "nfe": args.nfe, "w": args.w}
        made = distil.train(args.base, out, steps=args.steps, batch_size=args.batch_size, resume=True, **how)
        model = made.model()
        asked = model.given(text=words, **({"w": torch.full((args.n,), args.w)} if "w" in model.conditions else {}))
        with samplers.budget(asked, args.n, args.nfe) as spent:
            z = sample_many(asked, args.n, made.shape, SEED, sampler=distil.plan(made, model, args.nfe))
        x = decoded(model, z)
        rows.append((f"{method}, {spent.nfe:g} evaluations, {made.train_seconds / 60:.0f} min", shares(prompts, x)))
        pictures.save_png(pictures.grid(x[:64], 8, scale=2), out / "pictures.png", {"seed": SEED, **how})
    write(args, "students", told(f"Few steps, n={args.n}, w={args.w:g} folded in", rows))
    whole = rows[0][1]["match"].value
    for name, values in rows[1:]:
        bar(f"{name}: caption match over the teacher's", values["match"].value / max(whole, 1e-9), 0.95)
    for name, _ in rows[1:]:
        minutes = float(name.rsplit(",", 1)[1].split()[0])
        print(f"{name}: {'met' if minutes <= 60 else 'MISSED'} (<= 60 minutes)")


def main() -> None:
    """Run one of the parts."""
    parts = {f.__name__: f for f in (scores, edits, students)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--base", default="shapes")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--lr", type=float, default=None, help="of descents")
    parser.add_argument("--field", default="pixels", choices=LR, help="what renders the latents")
    parser.add_argument("--change", default="colour", choices=("colour", "shape"))
    parser.add_argument("--methods", nargs="+", default=["dmd2", "meanflow", "shortcut"], choices=list(distil.METHODS))
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--w", type=float, default=shapes.SAMPLING["w"], help="guidance that students take over")
    parser.add_argument("--batch-size", type=int, default=distil.BATCH, help="of students")
    args = parser.parse_args()
    args.steps = args.steps or STEPS[args.part]
    args.lr = args.lr or LR[args.field if args.part == "scores" else "pixels"]
    ROOT.mkdir(parents=True, exist_ok=True)
    parts[args.part](args)


if __name__ == "__main__":
    main()
