"""Quality, diversity, speed: GAN, VAE, StyleGAN2 and diffusion at equal parameters and equal training time.

    SUFFUSE_DATA=... OMP_NUM_THREADS=1 python benchmarks/trilemma.py [--minutes 8] [--n 1000]

Writes docs/trilemma.md and docs/images/trilemma.png. Five trainings of --minutes each on Fashion-MNIST 28 x 28 without
labels (DDPM and DDIM share one), one after the other, resumable in runs/trilemma; then the grid of 25 Gaussians, a
minute each. The feature space is the last hidden layer of a classifier trained on half of the training pictures; real
pictures in the table are the other half. Time is processor time of one thread.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse import Denoiser, data, fit, losses, metrics, nets, noise, pictures, sample, samplers, schedules
from suffuse.data.toys import gaussians, mode_centres
from suffuse.training import Stopped
from suffuse.training.files import write_json, write_text

PAGE, IMAGE = (Path(__file__).parent.parent / "docs" / name for name in ("trilemma.md", "images/trilemma.png"))
LATENT, BATCH, TRIAL = 64, 64, 12
NAMES = {
    "vae": "VAE",
    "gan": "GAN (DCGAN's loss)",
    "stylegan": "StyleGAN2, small",
    "ddpm": "DDPM, 250 steps",
    "ddim": "the same model, DDIM 20 steps",
    "flow": "flow, 20 evaluations",
}


class Codes(nn.Module):
    """A generator: codes (B, 64) to the coarsest maps, and a decoder of these."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(LATENT, 32 * 49), nn.SiLU(), nn.Unflatten(1, (32, 7, 7)))
        self.decoder = nets.Decoder(32, 1, wide, (1, 2, 3))

    def forward(self, z: Tensor) -> Tensor:
        """(B, 64) -> (B, 1, 28, 28)."""
        return self.decoder(self.first(z)).tanh()


class Judge(nn.Module):
    """A DCGAN discriminator: halving convolutions, then one score."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, wide, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(wide, 2 * wide, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * wide, 4 * wide, 3, 1, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(4 * wide * 49, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> (B,)."""
        return self.body(x)[:, 0]


def made(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """The untrained model, its loss, and options of `fit`; each model has 1.0 to 1.1 million parameters."""
    torch.manual_seed(0)
    adam = {"lr": 1e-3, "ema": 0.999}
    if name == "vae":
        return nets.Autoencoder(1, 4, 33, (1, 2, 3)), partial(losses.autoencoding, kl=0.05, square=1.0), adam
    if name == "gan":
        return Codes(40), losses.GAN(Judge(48), LATENT, gamma=0.0), {"lr": 3e-4, "ema": 0.995}
    if name == "stylegan":
        made_by = nets.StyleGenerator(1, 28, 71, (1, 2, 3), LATENT)
        against = nets.StyleDiscriminator(1, 28, 40, (1, 2, 3))
        return made_by, losses.GAN(against, LATENT, gamma=2.0, every=8), {"lr": 1e-3, "ema": 0.995}
    unet = nets.UNet(1, 24, (1, 2, 3), 1, (-1,))
    if name == "ddpm":
        return Denoiser(unet, schedules.VP(), "eps"), losses.denoising, adam
    flow = Denoiser(unet, schedules.Linear(), "velocity")
    return flow, partial(losses.denoising, times=losses.logit_normal), adam


def trained(name: str, x: Tensor, minutes: float, runs: Path) -> tuple[Any, dict[str, Any]]:
    """The averaged model after so many minutes, and what it took; the number of steps, by a trial, is kept."""
    model, loss, options = made(name)
    net = model.net if isinstance(model, Denoiser) else model
    out, size = runs / name, sum(p.numel() for p in net.parameters())
    out.mkdir(parents=True, exist_ok=True)
    plan = out / "plan.json"
    if not plan.exists():
        trial = partial(fit, *made(name)[1::-1][:1], {"x": x}, batch_size=BATCH, progress=False)
        spent = []
        for steps in (2, TRIAL):
            began = time.process_time()
            trial(made(name)[0], steps=steps, **options)
            spent.append(time.process_time() - began)
        each = (spent[1] - spent[0]) / (TRIAL - 2)
        write_json(plan, {"steps": int(60 * minutes / each), "minutes": minutes})
    kept = json.loads(plan.read_text())
    if kept["minutes"] != minutes:
        raise SystemExit(f"{out} was planned for {kept['minutes']:g} minutes, now it is {minutes:g}: take it away")
    steps = kept["steps"]
    done = fit(loss, {"x": x}, model, steps=steps, batch_size=BATCH, out=out, resume=True, **options)
    about = {"parameters": size, "steps": steps}
    return done.ema, about


def drawer(name: str, model: Any) -> Callable[[int, int], Tensor]:
    """(n, first) -> n samples, numbers first to first + n - 1."""
    if name == "vae":
        return lambda n, first: model.decode(noise((n, 4, 7, 7), 1, first=first)).clamp(-1, 1)
    if name in ("gan", "stylegan"):
        return lambda n, first: model(noise((n, LATENT), 1, first=first)).clamp(-1, 1)
    how: dict[str, Any] = {
        "ddpm": {"sampler": samplers.ddpm(), "steps": 250, "seed": 1},
        "ddim": {"sampler": samplers.ddim(), "steps": 20},
        "flow": {"nfe": 20},
    }[name]
    return lambda n, first: sample(model, noise((n, 1, 28, 28), 1, first=first), first=first, **how).clamp(-1, 1)


def judge(x: Tensor, label: Tensor, runs: Path) -> metrics.Classifier:
    """The classifier whose features measure."""
    torch.manual_seed(0)
    net = metrics.Classifier(1, 28, 10)
    fit(metrics.classifier_loss, {"x": x, "label": label}, net, steps=700, batch_size=128, ema=None, out=runs / "judge",
        resume=True)  # fmt: skip
    return net.eval()


def fashion(minutes: float, n: int, runs: Path) -> dict[str, dict[str, Any]]:
    """Every rival on Fashion-MNIST; writes the picture."""
    train, test = data.fashion_mnist("train"), data.fashion_mnist("test")
    rows = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))  # in the set classes take turns
    half = train[rows[:30_000]]
    reader = judge(half["x"], half["label"], runs)
    x = train[rows[30_000:]]["x"]
    real, held = (reader.read(part)[1] for part in (x[:n], test[torch.arange(10_000)]["x"]))
    space, found, shown = "features of a Fashion-MNIST classifier", {}, [x[:10]]
    models: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name in NAMES:
        net = "ddpm" if name == "ddim" else name
        if net not in models:
            models[net] = trained(net, x, minutes, runs)
        model, about = models[net]
        if isinstance(model, nn.Module):
            model.eval()
        draw, parts, began = drawer(name, model), [], time.process_time()
        with torch.no_grad():
            for first in range(0, n, 100):
                parts.append(draw(min(100, n - first), first).float())
        spent = 1e3 * (time.process_time() - began) / n
        made_of = torch.cat(parts)
        features = reader.read(made_of)[1]
        found[name] = about | {
            "frechet_ratio": metrics.frechet_ratio(features, real, held, features=space).value,
            "precision": metrics.precision(features, held[:n], features=space).value,
            "recall": metrics.recall(features, held[:n], features=space).value,
            "ms": spent,
        }
        shown.append(made_of[:10])
        print(name, found[name], flush=True)
    found["real"] = {
        "frechet_ratio": 1.0,
        "precision": metrics.precision(real, held[:n], features=space).value,
        "recall": metrics.recall(real, held[:n], features=space).value,
    }
    pictures.save_png(pictures.grid(torch.cat(shown), 10, scale=2), IMAGE, {"made by": "benchmarks/trilemma.py"})
    return found


def modes(runs: Path) -> dict[str, dict[str, float]]:
    """The grid of 25 Gaussians: modes with at least 20 of 5,000 samples within three deviations, and samples there."""
    x, spread = gaussians(100_000, 0, modes=25, layout="grid", spread=0.1)["x"], 0.1
    middle = mode_centres(25, "grid").float()

    def mlp(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(a, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128),
                             nn.SiLU(), nn.Linear(128, b))  # fmt: skip

    class Vae(nn.Module):
        """Two hidden networks, each of half the parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.there, self.back = mlp(2, 4), mlp(2, 2)

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """Mean and log variance of z."""
            mean, logvar = self.there(x).chunk(2, 1)
            return mean, logvar

        def decode(self, z: Tensor) -> Tensor:
            """x of z."""
            return self.back(z)

    torch.manual_seed(0)
    rivals: dict[str, tuple[Any, Any, float]] = {
        "vae": (Vae(), partial(losses.autoencoding, kl=2 * spread**2, square=1.0), 1e-3),
        "gan": (mlp(2, 2), losses.GAN(nn.Sequential(mlp(2, 1), nn.Flatten(0)), 2, gamma=0.0), 3e-4),
        "gan with R1": (mlp(2, 2), losses.GAN(nn.Sequential(mlp(2, 1), nn.Flatten(0)), 2, gamma=0.1), 1e-3),
        "flow": (Denoiser(nets.MLP(2, 76, 2), schedules.Linear()), losses.denoising, 1e-3),
    }
    found = {}
    for name, (model, loss, lr) in rivals.items():
        done = fit(loss, {"x": x}, model, steps=8000, batch_size=256, lr=lr, precision="float32",
                   out=runs / f"grid-{name.replace(' ', '-')}", resume=True)  # fmt: skip
        z, best = noise((5000, 2), 1), done.ema
        with torch.no_grad():
            y = sample(best, z, nfe=20) if name == "flow" else best.decode(z) if name == "vae" else best(z)
        near, which = torch.cdist(y, middle).min(1)
        good = near < 3 * spread
        net = model.net if isinstance(model, Denoiser) else model
        found[name] = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "modes": int((which[good].bincount(minlength=25) >= 20).sum()),
            "near": good.float().mean().item(),
        }
        print(name, found[name], flush=True)
    return found


def page(found: dict[str, Any], grid: dict[str, Any], minutes: float, n: int) -> str:
    """docs/trilemma.md."""
    rows = [
        f"| {NAMES[k]} | {v['parameters'] / 1e6:.2f} M | {v['steps']:,} | {v['frechet_ratio']:.2f} | "
        f"{v['precision']:.3f} | {v['recall']:.3f} | {v['ms']:.2f} |"
        for k, v in found.items()
        if k in NAMES
    ]
    real = found["real"]
    ours, rivals = [found[k] for k in ("ddpm", "flow")], [found[k] for k in ("vae", "gan", "stylegan")]
    signs = {
        "quality +": ("Frechet ratio", min(v["frechet_ratio"] for v in ours) < min(v["frechet_ratio"] for v in rivals)),
        "diversity +": ("recall", max(v["recall"] for v in ours) > max(v["recall"] for v in rivals)),
        "speed -": ("ms a sample", min(v["ms"] for v in ours) > max(v["ms"] for v in rivals)),
    }
    said = "\n".join(
        f"- {sign}: by {by}, diffusion's best against the rivals' best: {'seen' if yes else 'NOT seen'} here."
        for sign, (by, yes) in signs.items()
    )
    fallen = [NAMES[k] for k, v in found.items() if k in NAMES and v["recall"] < 0.05]
    if fallen:
        said += (
            f"\n\nCollapsed in this time, to a recall below 0.05: {', '.join(fallen)}. Their quality here says how "
            "far they come in it, not what they can do with more; so does diffusion's lead in quality and diversity."
        )
    modes_of = "\n".join(
        f"| {k} | {v['parameters']:,} | {v['modes']} of 25 | {100 * v['near']:.1f} % |" for k, v in grid.items()
    )
    head = "| model | parameters | steps | Frechet ratio | precision | recall | ms a sample |\n"
    head += "|---" + "|--:" * 6 + "|"
    return f"""# The trilemma: quality, diversity, speed

`SUFFUSE_DATA=... OMP_NUM_THREADS=1 python benchmarks/trilemma.py --minutes {minutes:g} --n {n}` writes this page.

Fashion-MNIST 28 x 28 without labels, {minutes:g} minutes of one core (processor time) for each training, batches of
{BATCH}; the discriminators of the GANs come on top of the parameters named. {n:,} samples, features of a classifier
trained on other pictures; a Frechet ratio of 1 and the last row are real pictures.

{head}
{chr(10).join(rows)}
| real pictures | | | 1.00 | {real["precision"]:.3f} | {real["recall"]:.3f} | |

![a row each: real pictures, then the models in the order of the table](images/trilemma.png)

Rows: real pictures, then the models in the order of the table.

{said}

## Modes

The grid of 25 Gaussians, 8,000 steps of 256 points, 5,000 samples; a mode is found by 20 samples within three
deviations of its centre.

| model | parameters | modes | samples near a mode |
|---|--:|--:|--:|
{modes_of}
"""


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/trilemma"))
    options = parser.parse_args()
    if not math.isfinite(options.minutes) or options.minutes <= 0:
        raise SystemExit(f"--minutes must be a positive number, got {options.minutes}")
    torch.set_num_threads(1)
    try:
        grid = modes(options.runs)
        found = fashion(options.minutes, options.n, options.runs)
    except Stopped as stopped:
        raise SystemExit(str(stopped)) from None
    write_json(options.runs / "found.json", {"fashion": found, "grid": grid})
    write_text(PAGE, page(found, grid, options.minutes, options.n))


if __name__ == "__main__":
    main()
