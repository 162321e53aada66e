"""`suffuse demo`, `evaluate`, `info`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from suffuse.cli.processes import together
from suffuse.cli.say import say, summary

__all__ = ["Demo", "Evaluate", "Info"]


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
        _digits(result)
        say(f"\npictures and numbers explained: {report.resolve()}")


@dataclass(frozen=True)
class Evaluate:
    """Measure a run against real data; writes metrics.json, pictures and report.html."""

    run: Positional[Path]
    """a run's folder, or the name of a model that ships: shapes"""
    n: int | None = None
    """samples of each measurement; by default the recipe's own"""
    out: Path | None = None
    """folder to write to; by default the run's own, and runs/NAME for a model that ships"""
    features: Path | None = None
    """of a run of pictures: an Inception in TorchScript, or a folder of DINOv2, to measure in as well"""
    processes: int = 1
    """how many on this machine share the sampling, and its cores; not for students of few steps"""

    def __call__(self) -> None:
        """Evaluate."""
        together(self.processes, self._measure)

    def _measure(self) -> None:
        from suffuse.recipes.run import Run
        from suffuse.training import peers

        if self.n is not None and self.n < 1:
            raise ValueError(f"--n must be at least 1, got {self.n}")
        run = Run.open(self.run)
        seen: dict[str, Any] = {}
        if self.features is not None:
            from suffuse import metrics

            if run.recipe != "images":
                raise ValueError(f"--features is for runs of images, {run.path} is one of {run.recipe}")
            seen = {"features": metrics.features(self.features)}
        if run.recipe == "shapes":
            from suffuse.recipes import shapes

            out = self.out or (Path("runs") / run.path.name if run.ships else run.path)
            if self.out is None and run.ships and ((out / "run.json").exists() or (out / "checkpoints").exists()):
                raise ValueError(f"{out} holds a run of your own: name another folder with --out")
            result = shapes.evaluate(run, out, n=self.n or shapes.ASKED)
            for name in shapes.ASKS:
                summary(result[name]["asked"], result[name]["measured"])
            say(f"\nreport: {shapes.pictures_of(run, result, out).resolve()}")
            return
        if run.recipe in ("toy", "images") and self.out is None:
            from suffuse.recipes import images_measured, toy

            recipe = toy if run.recipe == "toy" else images_measured
            result = recipe.evaluate(run, n=self.n or recipe.ASKED, **seen)
            parts = [result] if "measured" in result else [result[k] for k in (*toy.SAMPLERS, "floor", "chance")]
            for part in parts:
                summary(part.get("asked", ""), part["measured"])
            say(f"\nreport: {recipe.pictures_of(run, result).resolve()}")
            return
        if run.recipe == "distil" and self.n is None and self.out is None:
            if peers().count > 1:
                raise ValueError(f"{run.path} is a student, whose evaluations are counted: leave out --processes")
            from suffuse.recipes import distil

            for nfe, found in distil.evaluate(run).items():
                if nfe.isdigit():
                    measured = {k: v for k, v in found.items() if k != "nfe"}
                    summary(f"{found['nfe']:g} evaluations a sample, counted", measured)
            return
        if self.n is not None or self.out is not None:
            raise ValueError(f"--n and --out are not for runs of {run.recipe}, as {run.path} is one")
        from suffuse.recipes import digits

        result = digits.evaluate(run)
        _digits(result)
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
        if run.recipe == "control":
            about = run.settings
            say(f"a control by {about['kind']} ({about['method']}) beside {about['base']}, trained with {about}")
            say(f"next: suffuse sample {about['base']} --control {self.run} --hint PICTURE")
            return
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


def _digits(result: dict[str, Any]) -> None:
    titles = {
        "label_accuracy": "label accuracy",
        "frechet_ratio": "Frechet ratio (1 = real data)",
        "recall": "recall",
        "memorised": "memorised (real data: 0.01)",
    }
    summary("", {title: result[name] for name, title in titles.items()})
    say(
        f"{'at':>30}  {result['nfe']} evaluations a sample, {result['samples_per_second']:.0f} samples/s, "
        f"trained in {result['train_seconds']:.0f} s"
    )
