"""Minutes to a Frechet ratio of 2 on Fashion-MNIST with classes: suffuse beside a plain diffusers training loop.

    SUFFUSE_DATA=... OMP_NUM_THREADS=1 python benchmarks/fashion.py [--minutes 12] [--n 1000] [--only diffusers]

Each run has one thread, and its clock is the processor time that it has taken; leave the other cores idle, or as busy
all the time. Both: U-Nets of the same width, levels, blocks and attention, batches of 64, a class always told, samples
of all classes by 20 network evaluations without guidance, an averaged network, a constant learning rate after a
warm-up. Time is that of training; looking, at times 1.4 times apart, does not count. It is one recipe against another,
not only one library:

    diffusers   UNet2DModel, DDPMScheduler's betas and noise, squared error of eps, torch.optim.AdamW as it is, float32,
                EMAModel with its warm-up (power 3/4, at most .9999), DPMSolverMultistepScheduler; --rates each
    suffuse     nets.UNet, a flow with logit-normal times, `fit` by Muon (bf16 where that is faster), default sampler

The ratio is FD(samples, unseen) / FD(training pictures, unseen), n of each against 10,000, in the last hidden layer of
a classifier that is trained on half of the training pictures. Curves lie in --runs/*.json; docs/benchmarks/fashion.md
and .png are written from all that lie there; a curve that is there is not made again.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import suffuse as sf
from suffuse import data, fit, losses, metrics, nets, pictures
from suffuse.training.files import read_json, write_json, write_text
from train_speed import unet2d

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
WIDTH, BATCH, NFE, WANTED, APART = 32, 64, 20, 2.0, 1.4
EVERY = 25
"""Steps between glances at the clock."""
SPACE = "features of a Fashion-MNIST classifier"


class Looks:
    """The curve of one run: what is measured at growing times, and the clock that stands still meanwhile."""

    def __init__(self, ratio: Callable[[Tensor], float], options: argparse.Namespace, name: str) -> None:
        self.ratio, self.last, self.name = ratio, 60 * options.minutes, name
        self.n, self.next, self.aside, self.found = options.n, 60 * options.first, 0.0, []

    def start(self) -> None:
        """Set the clock to 0."""
        self.began = time.process_time()

    def due(self) -> bool:
        """Whether it is time to look."""
        return time.process_time() - self.began - self.aside >= self.next

    def look(self, steps: int, draw: Callable[[Tensor, Tensor], Tensor]) -> bool:
        """Measure; whether the run is over: it has reached 2, or its time is up."""
        now = time.process_time()
        spent = now - self.began - self.aside
        label = torch.arange(self.n) % 10
        z = sf.noise((self.n, 1, 28, 28), seed=7)
        with torch.no_grad():
            x = torch.cat([draw(*part) for part in zip(z.split(250), label.split(250), strict=True)]).float()
        self.found.append({"seconds": spent, "steps": steps, "ratio": self.ratio(x.clamp(-1, 1))})
        print(f"{self.name}: {spent / 60:.2f} min, {steps} steps, ratio {self.found[-1]['ratio']:.2f}", flush=True)
        self.shown, self.next = x[:10], min(APART * spent, self.last)
        self.aside += time.process_time() - now
        return self.found[-1]["ratio"] <= WANTED or spent >= self.last


class Over(Exception):
    """Ends `fit` when its run is over."""


def ours(looks: Looks, x: Tensor, label: Tensor, lr: float, out: Path) -> int:
    """suffuse's run; returns the parameters."""
    net = nets.UNet(1, WIDTH, (1, 2, 2), 1, (-1,), conditions={"label": nets.Label(10)})
    model = sf.Denoiser(net, sf.schedules.Linear(), predicts="velocity")
    done = 0

    def loss(model: sf.Denoiser, batch: Mapping[str, Tensor]) -> Tensor:
        return losses.denoising(model, batch, times=losses.logit_normal)

    def watch(average: sf.Denoiser) -> dict[str, float]:
        nonlocal done
        done += EVERY
        if looks.due() and looks.look(done, lambda z, k: sf.sample(average.given(label=k), z, nfe=NFE)):
            raise Over
        return {}

    looks.start()
    with contextlib.suppress(Over):
        fit(loss, {"x": x, "label": label}, model, steps=10**6, batch_size=BATCH, lr=lr, optimizer="muon",
            warmup=100 * BATCH, decay=0.0, ema=0.999, watch=watch, watch_every=EVERY, log_every=EVERY, out=out,
            overwrite=True, progress=False)  # fmt: skip
    return sum(p.numel() for p in net.parameters())


def theirs(looks: Looks, x: Tensor, label: Tensor, lr: float) -> int:
    """The plain loop of diffusers' examples; returns the parameters."""
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
    from diffusers.training_utils import EMAModel

    net = unet2d(1, 28, WIDTH, 10)
    scheduler = DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 100))
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def draw(z: Tensor, k: Tensor) -> Tensor:
        solver = DPMSolverMultistepScheduler.from_config(scheduler.config)
        solver.set_timesteps(NFE)
        for t in solver.timesteps:
            z = solver.step(net(z, t, class_labels=k).sample, t, z).prev_sample
        return z

    steps = 0
    looks.start()
    while True:
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            net.train()
            clean, eps = x[rows], torch.randn(BATCH, 1, 28, 28)
            t = torch.randint(0, 1000, (BATCH,))
            out = net(scheduler.add_noise(clean, eps, t), t, class_labels=label[rows]).sample
            F.mse_loss(out, eps).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            warm.step()
            optimizer.zero_grad()
            average.step(net.parameters())
            steps += 1
            if steps % EVERY == 0 and looks.due():
                average.store(net.parameters())
                average.copy_to(net.parameters())
                over = looks.look(steps, draw) if net.eval() is net else False
                average.restore(net.parameters())
                if over:
                    return sum(p.numel() for p in net.parameters())


def judged(n: int, runs: Path) -> tuple[Callable[[Tensor], float], Tensor, Tensor]:
    """What measures a ratio; the training pictures and labels."""
    train, test = data.fashion_mnist("train"), data.fashion_mnist("test")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # in the set classes take turns
    every, half = train[rows], train[rows[: len(train) // 2]]
    torch.manual_seed(0)
    reader = metrics.Classifier(1, 28, 10)
    fit(metrics.classifier_loss, half, reader, steps=700, batch_size=128, ema=None, out=runs / "judge", resume=True,
        progress=False)  # fmt: skip
    reader.eval()
    x = every["x"]
    real, held = reader.read(x[-n:])[1], reader.read(test[torch.arange(10_000)]["x"])[1]
    return (
        lambda made: metrics.frechet_ratio(reader.read(made)[1], real, held, features=SPACE).value,
        x,
        every["label"],
    )


def curves(runs: Path) -> list[Path]:
    """The curves that lie there, and not what is said of their pictures."""
    return sorted(f for f in runs.glob("*-*.json") if ".png" not in f.suffixes)


def reached(curve: list[dict]) -> float | None:
    """Minutes to a ratio of 2, between two looks as logarithms."""
    for a, b in zip([None, *curve], curve, strict=False):
        if b["ratio"] <= WANTED:
            if a is None:
                return b["seconds"] / 60
            low, high, at = (torch.tensor(v).log() for v in (a["ratio"], b["ratio"], WANTED))
            share = ((low - at) / (low - high)).item()
            return (a["seconds"] ** (1 - share) * b["seconds"] ** share) / 60
    return None


def page(found: dict[str, dict], options: argparse.Namespace) -> None:
    """The table and the curves."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes, lines = figure.subplots(), []
    for name, one in found.items():
        curve, colour = one["curve"], "#2a6f97" if name.startswith("suffuse") else "#b58b4c"
        axes.plot([e["seconds"] / 60 for e in curve], [e["ratio"] for e in curve], "o-", ms=3, color=colour, label=name)
        axes.annotate(f" {name}", (curve[-1]["seconds"] / 60, curve[-1]["ratio"]), fontsize=7)
        at, last = reached(curve), curve[-1]
        lines.append(
            f"| {name} | {one['parameters'] / 1e6:.3f} M | {BATCH * last['steps'] / last['seconds']:.0f} | "
            f"{f'{at:.2f}' if at else 'not reached'} | {last['ratio']:.2f} at {last['seconds'] / 60:.2f} |"
        )
    axes.axhline(WANTED, color="#999", lw=0.8, ls="--")
    axes.set(xscale="log", yscale="log", xlabel="minutes of training", ylabel="Frechet ratio")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    pictures.save_figure(figure, DOCS / "fashion.png", dpi=110)
    times = {name: reached(one["curve"]) for name, one in found.items()}
    own = [t for name, t in times.items() if name.startswith("suffuse") and t]
    peer = [t for name, t in times.items() if name.startswith("diffusers") and t]
    longest = max(
        (one["curve"][-1]["seconds"] / 60 for n, one in found.items() if n.startswith("diffusers")), default=0
    )
    said = "suffuse and diffusers are not both here, or suffuse has not reached 2."
    if own and peer:
        said = f"suffuse takes {min(own) / min(peer):.2f} of the best peer's time (bar: 0.5)."
    elif own and longest:
        said = f"no peer reached 2 in up to {longest:.1f} minutes; suffuse takes {min(own) / longest:.2f} of that."
    about = (__doc__ or "").split("\n\n", 2)[2].split("The ratio is")[0].strip()
    write_text(
        DOCS / "fashion.md",
        f"# Fashion-MNIST: minutes to a Frechet ratio of 2\n\n`python benchmarks/fashion.py "
        f"--minutes {options.minutes:g} --first {options.first:g} --n {options.n}`.\n\n{about}\n\n"
        "| run | parameters | images a second | minutes to 2 | last ratio, at minutes |\n|---|--:|--:|--:|--:|\n"
        + "\n".join(lines)
        + f"\n\n{said[0].upper()}{said[1:]}\n\n![ratio against minutes of training](fashion.png)\n",
    )
    print("\n".join(lines), said, sep="\n")


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, at most, for each run")
    parser.add_argument("--first", type=float, default=0.5, help="minutes before the first look")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3], help="of the plain loop")
    parser.add_argument("--own", type=float, nargs="+", default=[1e-3], help="learning rates of suffuse")
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion-time"))
    parser.add_argument("--only", choices=("suffuse", "diffusers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    ratio, x, label = judged(options.n, options.runs)
    runs = {
        f"suffuse, {lr:g}": partial(ours, lr=lr, out=options.runs / f"suffuse-{lr:g}")
        for lr in options.own
        if options.only != "diffusers"
    }
    runs |= {f"diffusers, {lr:g}": partial(theirs, lr=lr) for lr in options.rates if options.only != "suffuse"}
    how = {"minutes": options.minutes, "first": options.first, "n": options.n}
    for file in curves(options.runs):
        if (one := read_json(file)["how"]) != how:
            raise SystemExit(f"{file} was made with {one}, now it is {how}: take it away, or ask for the same")
    for name, run in runs.items():
        file = options.runs / (name.replace(", ", "-") + ".json")
        if not file.exists():
            torch.manual_seed(0)
            looks = Looks(ratio, options, name)
            millions = run(looks, x, label)
            write_json(file, {"name": name, "how": how, "parameters": millions, "curve": looks.found})
            pictures.save_png(pictures.grid(looks.shown, 10, scale=3), file.with_suffix(".png"), {"run": name})
    found = {one["name"]: one for one in map(read_json, curves(options.runs))}
    page(found, options)


if __name__ == "__main__":
    main()
