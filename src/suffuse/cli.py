"""The command line: `suffuse demo`, `train`, `sample`, `evaluate`, `info`, `samplers`, `reproduce`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

__all__ = ["main"]


@dataclass(frozen=True)
class Demo:
    """Train a diffusion model on real handwritten digits, measure it, and show it: minutes on two cores."""

    out: Path = Path("runs/digits")
    """folder for everything it makes"""
    seed: int = 0
    """of weights, data order and noise"""

    def __call__(self) -> None:
        """Train, evaluate, draw."""
        from suffuse.recipes import digits

        say(f"training on 1,437 real digits ({digits.STEPS} steps), into {self.out}")
        run = digits.train(self.out, seed=self.seed, overwrite=True)
        say("measuring 1,437 samples against 360 unseen digits")
        result = digits.evaluate(run)
        report = digits.pictures_of(run, result)
        summary(result)
        say(f"\npictures and numbers explained: {report.resolve()}")


@dataclass(frozen=True)
class Train:
    """Train a recipe."""

    recipe: Positional[Literal["digits"]]
    out: Path = Path("runs/digits")
    """folder for checkpoints, log and model"""
    seed: int = 0
    """of weights, data order and noise"""
    steps: int | None = None
    """how many; by default the recipe's own"""
    batch_size: int | None = None
    """samples a step"""
    lr: float | None = None
    """peak learning rate"""
    dropout: float | None = None
    """how often the label is withheld; 0 makes a model that cannot be guided"""
    resume: bool = False
    """go on from the newest checkpoint in `out`"""
    overwrite: bool = False
    """begin anew where `out` already holds checkpoints"""

    def __call__(self) -> None:
        """Train."""
        from suffuse.recipes import digits

        chosen = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "dropout": self.dropout}
        run = digits.train(
            self.out,
            seed=self.seed,
            resume=self.resume,
            overwrite=self.overwrite,
            **{k: v for k, v in chosen.items() if v is not None},
        )
        say(f"trained in {run.train_seconds:.0f} s: {run.path / 'model'}")
        say(f"next: suffuse evaluate {run.path}; suffuse sample {run.path} --out samples.png")


@dataclass(frozen=True)
class Sample:
    """Sample from a trained run into a picture that carries its recipe."""

    run: Positional[Path]
    label: Annotated[tuple[int, ...], arg(metavar="INT...")] = ()
    """class of the samples; several are repeated in turn; none is unconditional"""
    n: int = 64
    """how many"""
    w: float = 1.0
    """guidance scale; 1 is off"""
    sampler: str | None = None
    """one of `suffuse samplers`; by default the best known for the budget"""
    order: int | None = None
    """of the sampler, where it has one"""
    eta: float | None = None
    """of ddim: 0 deterministic, 1 ddpm"""
    steps: int = 20
    """grid intervals"""
    grid: Literal["uniform", "logsnr", "karras"] | None = None
    """spacing of the times"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("samples.png")
    """picture to write; its recipe goes inside and into a .png.json beside it"""

    def __call__(self) -> None:
        """Sample."""
        from suffuse.recipes.draw import draw, recipe_of

        options = {k: v for k, v in vars(self).items() if k not in ("run", "out")}
        recipe = recipe_of(self.run, **options)
        draw(recipe, self.out)
        say(f"{self.out}: {self.n} samples, recipe inside and in {self.out.name}.json")


@dataclass(frozen=True)
class Evaluate:
    """Measure a run against real held-out data; writes metrics.json, pictures and report.html."""

    run: Positional[Path]

    def __call__(self) -> None:
        """Evaluate."""
        from suffuse.recipes import digits
        from suffuse.recipes.run import Run

        run = Run.open(self.run)
        result = digits.evaluate(run)
        summary(result)
        say(f"\nreport: {digits.pictures_of(run, result).resolve()}")


@dataclass(frozen=True)
class Info:
    """Say what a run is: network, schedule, settings, size, hash."""

    run: Positional[Path]

    def __call__(self) -> None:
        """Print it."""
        from suffuse.denoise import networks
        from suffuse.recipes.run import Run

        run = Run.open(self.run)
        model = run.model()
        parameters = sum(p.numel() for net in networks(model) for p in net.parameters())
        lines = {
            "recipe": run.recipe,
            "model": repr(model),
            "parameters": f"{parameters:,}",
            "data": f"{run.shape}",
            "takes": ", ".join(f"{k}: {v}" for k, v in model.conditions.items()) or "no conditions",
            "trained": f"{run.train_seconds:.0f} s with {run.settings}",
            "hash": run.model_hash,
        }
        for name, value in lines.items():
            say(f"{name:>11}  {value}")


@dataclass(frozen=True)
class Samplers:
    """List every sampler: order, calls a step, whether it draws noise, and its paper."""

    plot: Path | None = None
    """draw the deterministic ones' error against network evaluations into this picture instead"""

    def __call__(self) -> None:
        """Print the table, or draw."""
        from rich.console import Console
        from rich.table import Table

        from suffuse.samplers import rules

        if self.plot is not None:
            from suffuse.recipes.precision import plot

            found = plot(self.plot)
            say(f"{self.plot}: {len(found)} samplers on a mixture whose flow is known")
            return

        table = Table("name", "options", "order", "calls a step", "noise", "paper", box=None, pad_edge=False)
        for name, rule in rules().items():
            options = ", ".join(f"{k}={v}" for k, v in rule.options.items())
            table.add_row(
                name, options, f"{rule.order:g}", str(rule.stages), "yes" if rule.stochastic else "no", rule.paper
            )
        Console().print(table)


@dataclass(frozen=True)
class Reproduce:
    """Make a picture again from the recipe inside it, and compare the bytes."""

    picture: Positional[Path]
    run: Path | None = None
    """the run's folder, if it has moved"""
    out: Path | None = None
    """where the new picture goes; by default NAME.again.png beside the old one"""

    def __call__(self) -> None:
        """Sample again."""
        from suffuse.pictures import read_recipe
        from suffuse.recipes.draw import draw

        recipe = read_recipe(self.picture)
        if "run" not in recipe:
            raise ValueError(
                f"{self.picture} was made by {recipe.get('made by', 'another command')}, not by `suffuse sample`"
            )
        out = self.out or self.picture.with_suffix(".again.png")
        if out.resolve() == self.picture.resolve():
            raise ValueError(f"--out is the picture itself, {out}: choose another name")
        draw(recipe, out, run=self.run)
        if out.read_bytes() != self.picture.read_bytes():
            raise ValueError(
                f"{out} differs from {self.picture}: made with suffuse {recipe['suffuse']} and torch "
                f"{recipe['torch']}, on another machine or another number of threads?"
            )
        say(f"{out}: the same bytes")


def summary(result: dict[str, Any]) -> None:
    """The four numbers that matter."""
    for name, title in (
        ("label_accuracy", "label accuracy"),
        ("frechet_ratio", "Frechet ratio (1 = real data)"),
        ("recall", "recall"),
        ("memorised", "memorised (real data: 0.01)"),
    ):
        low, high = result[name]["interval"]
        say(f"{title:>30}  {result[name]['value']:.3f}   [{low:.3f}, {high:.3f}]  n={result[name]['n']}")
    say(
        f"{'at':>30}  {result['nfe']} evaluations a sample, {result['samples_per_second']:.0f} samples/s, "
        f"trained in {result['train_seconds']:.0f} s"
    )


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Samplers, tyro.conf.subcommand("samplers")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


def main(args: list[str] | None = None) -> None:
    """Run one command; what the user got wrong is one sentence and exit code 2."""
    command: Any = tyro.cli(Command, prog="suffuse", description=__doc__, args=args)  # type: ignore[arg-type]
    try:
        command()
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"suffuse: {error}", file=sys.stderr)
        sys.exit(2)
