"""The worlds of benchmarks/guidance.py, and what it measures beside them."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import suffuse as sf
from suffuse import data, guidance, losses, metrics, nets, oracle, samplers
from suffuse.nets.embed import TimeEmbedding
from suffuse.recipes import digits
from suffuse.recipes.draw import decoded
from suffuse.recipes.run import Run
from suffuse.training.files import read_tensors, write_tensors

MADE = Path("runs/guidance")


@dataclass
class World:
    """What is guided, and how it is measured.

    Attributes:
        pos, neg: the model told what each of n rows should be, and told nothing. n, shape: what is sampled.
        measure: samples -> {"accuracy", "recall", ...}. weak: for autoguidance. judge, label: a noisy classifier and
            what it should read. reward: of samples, given their rows. nfe: evaluations of one sample.
        options: of techniques, where the defaults are not for this data. made: what the numbers belong to.
    """

    pos: Any
    neg: Any
    n: int
    shape: tuple[int, ...]
    measure: Callable[[Tensor], dict[str, float]]
    nfe: int
    weak: Any = None
    judge: Any = None
    label: Tensor | None = None
    reward: Callable[[Tensor, slice], Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    seed: int = 11


def batches(n: int, size: int = 240) -> list[slice]:
    """Rows 0 to n - 1, a batch at a time."""
    return [slice(i, min(n, i + size)) for i in range(0, n, size)]


def drawn(world: World, denoiser: Any, **how: Any) -> Tensor:
    """World.n samples, row i with noise of its own whatever the batch."""
    how = {"nfe": world.nfe} | how
    parts = []
    for rows in batches(world.n):
        noise = sf.noise((rows.stop - rows.start, *world.shape), world.seed, first=rows.start)
        parts.append(sf.sample(denoiser.rows(rows), noise, seed=world.seed, first=rows.start, **how))
    return torch.cat(parts)


def trained(name: str, make: Callable[[], Any]) -> Any:
    """A model kept in runs/guidance, or made and kept."""
    path = MADE / name
    if not path.exists():
        model = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.save(model, path)
    return sf.load(path)


def judged(name: str, net: nn.Module, loss_data: dict[str, Tensor], **how: Any) -> guidance.NoisyClassifier:
    """A noise-aware classifier kept in runs/guidance, or trained and kept."""
    path, judge = MADE / f"{name}.safetensors", guidance.NoisyClassifier(net, sf.schedules.Linear())
    if path.exists():
        judge.load_state_dict(read_tensors(path))
        return judge.eval()
    done = sf.fit(losses.noisy_classification, loss_data, judge, ema=0.998, progress=False, **how)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, done.ema.state_dict())
    return done.ema.eval()


class Exact:
    """The classifier of a mixture that is never wrong."""

    def __init__(self, world: oracle.Mixture) -> None:
        self.world, self.schedule = world, world.schedule

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        told = []
        for y in sorted(set(self.world.labels.tolist())):
            share = self.world.log_weights.exp()[self.world.labels == y].sum().log()
            told.append(self.world.given(label=y).log_prob(x, t) + share)
        return torch.stack(told, 1)


class Plane(nn.Module):
    """A classifier of points in the plane."""

    def __init__(self, width: int = 96, classes: int = 2) -> None:
        super().__init__()
        self.time, self.first = TimeEmbedding(width), nn.Linear(5, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, 2), (B,) -> (B, classes)."""
        a, b = x.unbind(1)
        h = self.first(torch.stack([a, b, a * a, b * b, a * b], 1)) + self.time(t)
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return self.out(h)


def overlapping() -> oracle.Mixture:
    """Two classes of two Gaussians each that overlap."""
    means = torch.tensor([[-1.0, 0.3], [0.2, -0.9], [1.1, 0.4], [0.1, 0.9]], dtype=torch.float64)
    return oracle.Mixture([0.3, 0.3, 0.25, 0.15], means, [0.12, 0.2, 0.1, 0.15], labels=[0, 0, 1, 1])


def exact(given: argparse.Namespace) -> dict[str, Any]:
    """Classifier guidance and steering against exact draws of p(x) p(y|x)^s."""
    world = overlapping()
    judge, n, k = Exact(world), 500, 24
    directions = nn.functional.normalize(sf.noise((64, 2), 7, dtype=torch.float64), dim=1).T

    def likelihood(x: Tensor) -> Tensor:
        return judge(x, 0.0).log_softmax(1)[:, 1]

    def tilted(s: float, seed: int) -> Tensor:
        x = world.sample(12 * n, seed)
        u = (sf.random.bits((len(x),), seed, stream=99).double() + 0.5) * 2.0**-32
        return x[u.log() < s * likelihood(x)][:n]

    def sliced(a: Tensor, b: Tensor) -> float:
        return ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt().item()

    rows = []
    for s in (1.0, 2.0, 3.0):
        real = [tilted(s, 100 + i) for i in range(20)]
        floor = sum(sliced(a, b) for a, b in zip(real[:10], real[10:], strict=True)) / 10
        noise = sf.noise((n, 2), 1, dtype=torch.float64)
        plain = sf.sample(guidance.classifier(world, judge, 1, s), noise, steps=24)
        many = sf.noise((n * k, 2), 2, dtype=torch.float64)
        x = guidance.steer(world, likelihood, many, particles=k, lam=s, steps=40, seed=3).reshape(n, k, 2)
        sets = {"classifier": [plain], "steer": [x[:, i] for i in range(4)]}
        row = {"s": s} | {
            name: sum(sliced(a, b) for a in found for b in real) / len(found) / 20 / floor
            for name, found in sets.items()
        }
        rows.append(row)
        print("exact", row, flush=True)
    return {"tilted": rows, "n": n, "particles": k}


def gradient(given: argparse.Namespace) -> list[dict[str, Any]]:
    """How far trained classifiers' gradients are from the exact one on a mixture, three data sets each."""
    world, found = overlapping(), []
    probe = []
    for t in (0.1, 0.25, 0.5, 0.75):
        alpha, sigma = world.schedule(t)
        noise = sf.noise((20_000, 2), 4, dtype=torch.float64)
        probe.append((t, alpha * world.given(label=1).sample(20_000, 3) + sigma * noise))
    for optimizer, pooled in (("adamw", False), ("muon", False), ("adamw", True), ("muon", True)):
        errors, seconds = [], []
        for seed in range(3):
            x = world.sample(200_000, 1 + seed)
            batch = {"x": x.float(), "label": Exact(world)(x, 0.0).softmax(1).float()}
            torch.manual_seed(seed)
            judge, began = guidance.NoisyClassifier(Plane(), world.schedule), time.process_time()
            how = {"steps": 800, "batch_size": 512, "lr": 5e-3, "optimizer": optimizer, "seed": seed, "ema": 0.998}
            loss = partial(losses.noisy_classification, pooled=pooled)
            made = sf.fit(loss, batch, judge, **how, progress=False).ema.eval()
            seconds.append(time.process_time() - began)
            error = size = 0.0
            for t, at in probe:
                true = world.given(label=1)(at, t).x0
                error += (guidance.classifier(world, made, 1)(at.float(), t).x0 - true).square().sum().item()
                size += (world(at, t).x0 - true).square().sum().item()
            errors.append(error / size)
        row = {"optimizer": optimizer, "pooled": pooled, "errors": errors, "seconds": round(sum(seconds) / 3, 1)}
        found.append(row)
        print("gradient", row, flush=True)
    return found


def branches() -> oracle.Mixture:
    """Two classes, each a tree of 31 branches of 6 Gaussians, that cross near their trunks."""
    generator = torch.Generator().manual_seed(4)
    means, spreads, labels = [], [], []

    def grow(label: int, at: Tensor, angle: float, length: float, depth: int) -> None:
        way = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        for k in range(6):
            means.append(at + way * length * (k + 0.5) / 6)
            spreads.append((0.05 * length) ** 2)
            labels.append(label)
        if depth:
            for side in (-1, 1):
                turn = side * (0.45 + 0.35 * torch.rand(1, generator=generator).item())
                shrink = 0.62 + 0.2 * torch.rand(1, generator=generator).item()
                grow(label, at + way * length, angle + turn, length * shrink, depth - 1)

    for label, angle in ((0, 1.1), (1, 2.0)):
        grow(label, torch.tensor([0.7 * (0.5 - label), -1.4], dtype=torch.float64), angle, 1.0, 4)
    m = torch.stack(means)
    m = m - m.mean(0)
    scale = m.square().mean().sqrt()
    weights = torch.tensor(spreads).sqrt()
    return oracle.Mixture(weights, m / scale, torch.tensor(spreads, dtype=torch.float64) / scale**2, labels=labels)


def fractal(given: argparse.Namespace) -> World:
    """A network on the fractal; accuracy is the share of samples that lie on the asked class."""
    world, n = branches(), 1024
    x = world.sample(100_000, 1)
    label = Exact(world)(x, 0.0).argmax(1)
    points = {"x": x.float(), "label": label}

    def net(width: int, depth: int, steps: int) -> Any:
        torch.manual_seed(0)
        made = nets.MLP(2, width=width, depth=depth, conditions={"label": nets.Label(2)})
        model = sf.Denoiser(made, sf.schedules.Linear(), "velocity")
        loss = partial(losses.denoising, dropout=0.1)
        how = {"steps": steps, "batch_size": 256, "lr": 2e-3, "ema": 0.998, "progress": False}
        return sf.fit(loss, points, model, **how).ema

    strong = trained("fractal_strong", partial(net, 96, 4, 3000))
    weak = trained("fractal_weak", partial(net, 48, 2, 400))
    torch.manual_seed(0)
    judge = judged("fractal_judge", Plane(), points, steps=800, batch_size=256, lr=4e-3)
    one = world.given(label=1)
    real, asked = one.sample(n, 5), torch.ones(n, dtype=torch.long)
    edge = one.log_prob(one.sample(20_000, 6)).quantile(0.02)

    def measure(x: Tensor) -> dict[str, float]:
        x = x.double()
        found = metrics.recall(x, real, features="the plane").value
        on = (one.log_prob(x) > edge).double().mean().item()
        w2 = metrics.sliced_wasserstein(x, real, features="the plane").value
        return {"accuracy": on, "recall": found, "w2": w2}

    def reward(x: Tensor, rows: Tensor) -> Tensor:
        return Exact(world)(x.double(), 0.0).log_softmax(1)[:, 1]

    pos = strong.given(label=asked)
    options = {"norm": 0.2}
    return World(pos, strong, n, (2,), measure, 24, weak.given(label=asked), judge, asked, reward, options)


def of_digits(given: argparse.Namespace) -> World:
    """The digits model; accuracy and features by the judge of the recipe, the reward by another."""
    run = Run.open(given.run or "runs/digits")
    model, real, unseen = run.model(), data.digits("train"), data.digits("test")
    if not (MADE / "digits_weak/run.json").exists():
        digits.train(MADE / "digits_weak", steps=130, seed=3, overwrite=True, progress=False)
    weak, judge, other = Run.open(MADE / "digits_weak").model(), digits.classifier(), digits.classifier(seed=7)
    torch.manual_seed(0)
    net = nets.UNet(1, width=32, multipliers=(1, 2), blocks=1, attention=(1,), out_channels=10, dropout=0.1)
    noisy = judged("digits_judge", net, dict(real), steps=400, batch_size=64, lr=2e-3, weight_decay=0.05)
    n = given.n or 400
    label, (_, theirs), (_, held_out) = real["label"][:n], judge.read(real["x"][:n]), judge.read(unseen["x"])

    def measure(x: Tensor) -> dict[str, float]:
        read, mine = judge.read(x.clamp(-1, 1))
        return {
            "accuracy": (read == label).double().mean().item(),
            "recall": metrics.recall(mine, theirs, features="judge").value,
            "precision": metrics.precision(mine, theirs, features="judge").value,
            "frechet": metrics.frechet_ratio(mine, theirs, held_out, features="judge").value,
        }

    def reward(x: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            scores = torch.cat([other(part) for part in x.clamp(-1, 1).split(1024)])
        return scores.log_softmax(1)[torch.arange(len(x)), label[rows]]

    pos, options = model.given(label=label), {"attention": True, "limit": 1.0, "norm": 2.0}
    told, made = weak.given(label=label), {"model": run.model_hash}
    return World(pos, model, len(label), (1, 8, 8), measure, 12, told, noisy, label, reward, options, made)


def of_shapes(given: argparse.Namespace) -> World:
    """The shapes model; accuracy is caption match by the held-out judge, recall in its features."""
    from suffuse.data.shapes import Scenes

    run = Run.open(given.run or "shapes")
    model, n, judge = run.model(), given.n or 500, metrics.shapes.judge("held_out")
    text = model.conditions["text"]
    scenes = Scenes(9_000_011, counts=(0.0, 1.0), identical=0.0, full=True)(0, n)
    ids = text.ids(scenes.captions)

    def features(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([judge.net.features(part)[1] for part in x.clamp(-1, 1).split(256)])

    theirs = features(scenes.images)

    def measure(x: Tensor) -> dict[str, float]:
        x = decoded(model, x)
        match = judge.match(scenes.captions, x).all.double().mean().item()
        return {"accuracy": match, "recall": metrics.recall(features(x), theirs, features="judge").value}

    made, weak = {"model": run.model_hash}, None
    if given.weak is not None:
        early = sf.load(given.weak)
        made["weak"] = Run.open(given.weak).model_hash
        if (early.codec is None) != (model.codec is None) or (model.codec is not None and not alike(early, model)):
            raise ValueError(f"{given.weak} has latents of its own: train it with codec= of {run.path}")
        weak = early.given(text=ids)
    options = {"attention": True, "norm": 5.0} | ({"limit": 1.0} if model.codec is None else {})
    return World(model.given(text=ids), model, n, run.shape, measure, 20, weak, options=options, made=made)


def alike(a: Any, b: Any) -> bool:
    """Whether two models denoise the same latents."""
    mine, theirs = a.codec.net.encoder.state_dict(), b.codec.net.encoder.state_dict()
    same = mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())
    return same and (a.codec.scale, a.codec.shift) == (b.codec.scale, b.codec.shift)


def steps(given: argparse.Namespace) -> list[dict[str, Any]]:
    """25 evaluations against 250 on digits: Frechet ratio, by sampler."""
    world, rows = of_digits(given), []
    for name, rule in (("ddim", samplers.ddim), ("ddpm", samplers.ddpm)):
        row: dict[str, Any] = {"sampler": name}
        for n in (25, 250):
            row[str(n)] = world.measure(drawn(world, world.pos, nfe=n, sampler=rule))["frechet"]
        rows.append(row)
        print("steps", row, flush=True)
    return rows


def cost(given: argparse.Namespace) -> list[dict[str, Any]]:
    """A guided evaluation against one forward of the doubled batch, in turn; the least of 25 each, in ms."""
    rows = []
    text = {"text": nets.Words(("red", "square", "a"), 192, layers=2)}
    dit = sf.Denoiser(nets.DiT(3, 4, 192, 6, 3, conditions=text), sf.schedules.Linear())
    for name, model, told, x in (
        ("digits U-Net, 128 of 8 x 8", digits.build(), {"label": torch.arange(128) % 10}, (128, 1, 8, 8)),
        ("shapes DiT, 16 of 32 x 32", dit, {"text": ["a red square"] * 16}, (16, 3, 32, 32)),
    ):
        model.net.eval()
        pos, x = model.given(**told), sf.noise(x, 0)
        twice = model.given(**{k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in pos.bound.items()})
        acts = {
            "guided": partial(guidance.guide(pos, model, 3.0), x, 0.5),
            "doubled": partial(twice, torch.cat([x, x]), 0.5),
        }
        least = dict.fromkeys(acts, math.inf)
        with torch.no_grad():
            for _ in range(25):
                for which, act in acts.items():
                    began = time.perf_counter()
                    _ = act().x0
                    least[which] = min(least[which], 1000 * (time.perf_counter() - began))
        rows.append({"what": name} | least | {"ratio": least["guided"] / least["doubled"]})
        print("cost", rows[-1], flush=True)
    return rows
