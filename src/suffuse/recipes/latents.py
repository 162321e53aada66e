"""Latent diffusion on the shapes world at 64 x 64: a KL autoencoder to 8 x 8 x 8, and text to image in its latents.

train_autoencoder("runs/codec")                         the codec: reconstruction, KL, features of the judge in use
train("runs/latents", codec="runs/codec", net="dit")    a flow in latents that are encoded once and kept on disk
evaluate(Run.open("runs/latents"))                      caption match of decoded pictures, by the held-out judge

Rombach et al. 2022.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from suffuse import data, losses, metrics, nets
from suffuse.data.shapes import VOCABULARY, Scenes, captions
from suffuse.denoise import Denoiser
from suffuse.guidance import guide
from suffuse.recipes.draw import decoded, sample_many
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import fit, save
from suffuse.training.codecs import load_codec, save_codec
from suffuse.training.files import write_json

__all__ = ["Drawn", "build", "evaluate", "seen", "shape_of", "train", "train_autoencoder"]

SIZE, LATENT = 64, 8
WIDTH, MULTIPLIERS = 32, (1, 2, 4, 4)
BATCH, LR, EMA, DROPOUT, W = 64, 1.5e-3, 0.999, 0.1, 3.0
FRESH = 4_000_037
"""Seed of scenes that no training of this recipe draws."""
ESTIMATED = 512
"""Pictures that the latents' scale is estimated from, and that the codec is measured on."""


class Drawn:
    """Scenes 0 to n - 1 of a seed as a set: "x", the picture, and "text", its caption, where words are given.

    Args:
        scenes: the world. n: how many. text: the condition that numbers the words. length: of a caption, in words.
        pictures: False leaves "x" out, for latents that stand for it.
    """

    def __init__(
        self, scenes: Scenes, n: int, text: nets.Words | None = None, *, length: int = 40, pictures: bool = True
    ) -> None:
        self.scenes, self.n, self.text, self.length, self.pictures = scenes, n, text, length, pictures

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        batch = self.scenes[rows]
        made = {"x": batch.images} if self.pictures else {}
        return made if self.text is None else made | {"text": self.text.ids(batch.captions, length=self.length)}


def shape_of(codec: nets.LatentCodec, size: int) -> tuple[int, int, int]:
    """Of the latents of one square picture of this size."""
    return codec.net.latent, size // codec.factor, size // codec.factor


def seen() -> tuple[Any, int]:
    """What the judge in use sees in pictures (B, 3, 32, 32), (B, C, 8, 8) less its mean over scenes; and C."""
    judge = metrics.shapes.judge("use").net.eval()
    with torch.no_grad():
        shared = judge.features(Scenes(0)(0, 512).images)[0].mean((0, 2, 3), keepdim=True)
    return (lambda x: judge.features(x)[0] - shared), shared.shape[1]


class _Loss(nn.Module):
    """`losses.autoencoding` with two parts of its own, whose parameters are trained along: a judge and a likeness.

    Args:
        adversarial: the judge. aligned: channels of the latents, and the weight of their likeness to what is `seen`.
        options: of `losses.autoencoding`.
    """

    def __init__(self, adversarial: losses.Adversarial | None, aligned: tuple[int, float], **options: Any) -> None:
        super().__init__()
        self.adversarial, self.options = adversarial, options
        latent, self.scale = aligned
        self.likeness = None
        if self.scale:
            sees, features = seen()
            self.likeness = losses.Likeness(sees, latent, features, hidden=128)

    def forward(self, model: Any, batch: Any) -> Tensor:
        options = dict(self.options)
        if (likeness := self.likeness) is not None:
            options["aligned"] = lambda z, x: self.scale * likeness(z, x)
        return losses.autoencoding(model, batch, adversarial=self.adversarial, **options)


def train_autoencoder(
    out: str | Path,
    *,
    size: int = SIZE,
    latent: int = LATENT,
    width: int = WIDTH,
    multipliers: tuple[int, ...] = MULTIPLIERS,
    seed: int = 0,
    steps: int = 6000,
    batch_size: int = 16,
    lr: float = 1e-3,
    ema: float = 0.998,
    kl: float = 1e-6,
    perceptual: float = 0.05,
    adversarial: float = 0.0,
    aligned: float = 0.0,
    perturb: float = 0.0,
    estimated: int = ESTIMATED,
    encoder: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train an autoencoder on scenes as they are drawn, and write a run folder with codec/ and metrics.json.

    Args:
        out: the folder. size: of the pictures. latent, width, multipliers: of `nets.Autoencoder`.
        seed: of weights and scenes. steps, batch_size, lr, ema: as for `fit`.
        kl, perceptual, adversarial, aligned: weights; the features are those of the judge in use, 0 leaves a term
            out. Aligned latents need the judge's size, 32. perturb: see `losses.autoencoding`.
        estimated: pictures that the scale is estimated from.
        encoder: a run of this whose encoder and scale stay as they are, so models of its latents stay right: its
            decoder alone is trained on, as long as it takes, towards a larger `perturb` for example.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    """
    out = Path(out)
    weights = {"kl": kl, "perceptual": perceptual, "adversarial": adversarial, "aligned": aligned, "perturb": perturb}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        kept = None if encoder is None else load_codec(Path(encoder) / "codec")
        net = nets.Autoencoder(3, latent, width, multipliers) if kept is None else kept.net
        net.decoder.requires_grad_()
        against = losses.Adversarial(3, weight=adversarial) if adversarial else None
        loss = _Loss(against, (latent, aligned), kl=kl, perturb=perturb)
    if perceptual:
        judge = metrics.shapes.judge("use").net
        loss.options["perceptual"] = losses.Perceptual(judge, [judge.near, judge.cells], perceptual)
    done = fit(
        loss,
        Drawn(Scenes(seed, size), steps * batch_size),
        net,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=ema,
        decay=0.5,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "autoencoder", "encoder": kept is not None} | weights,
        progress=progress,
    )
    trained = done.ema.eval()
    if kept is None:
        codec = nets.LatentCodec.of(trained, Scenes(seed, size)(0, estimated).images, seed=seed)
    else:
        codec = nets.LatentCodec(trained, kept.scale, kept.shift)
    save_codec(codec, out / "codec")
    settings = {"seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema, "kl": kl}
    settings |= {"size": size} | weights
    made = Run(out, "autoencoder", shape_of(codec, size), settings, round(done.seconds, 2))
    made.write()
    write_json(out / "metrics.json", measured(codec, Scenes(FRESH, size)(0, estimated).images))
    return made


def measured(codec: nets.LatentCodec, x: Tensor) -> dict[str, Any]:
    """PSNR of what comes back of pictures (N, 3, H, W), in dB, and mean and standard deviation of their latents."""
    z, back = [], []
    with torch.no_grad():
        for i, part in enumerate(x.split(64)):
            z.append(codec.encode(part, FRESH + i))
            back.append(codec.decode(z[-1]).clamp(-1, 1))
    latents = torch.cat(z).double()
    spread = {"latent_mean": latents.mean().item(), "latent_std": latents.std().item()}
    return {"psnr": metrics.psnr(torch.cat(back), x).to_json()} | spread


def build(net: str = "dit", *, latent: int = LATENT, width: int = 192, depth: int = 6, heads: int = 3) -> Denoiser:
    """The untrained model of latents, told words: "dit" or "mmdit", a patch for each place.

    Raises:
        ValueError: another name.
    """
    kinds = {"dit": nets.DiT, "mmdit": nets.MMDiT}
    if net not in kinds:
        raise ValueError(f"net must be 'dit' or 'mmdit', got {net!r}")
    told = {"text": nets.Words(VOCABULARY, width, layers=2)}
    return Denoiser(kinds[net](latent, 1, width, depth, heads, conditions=told), Linear(), predicts="velocity")


def train(
    out: str | Path,
    *,
    codec: str | Path,
    net: str = "dit",
    size: int = SIZE,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    scenes: int = 100_000,
    seed: int = 0,
    steps: int = 16_000,
    batch_size: int = BATCH,
    lr: float = LR,
    ema: float = EMA,
    dropout: float = DROPOUT,
    cache: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train text to image in the latents of a codec, and write a run folder with model/ and codec/.

    Args:
        out: the folder. codec: the run of `train_autoencoder`. net, width, depth, heads: as for `build`.
        size: of the pictures. scenes: how many are encoded; they are drawn with seed + 1, the codec has not seen them.
        seed, steps, batch_size, lr, ema: as for `fit`. dropout: how often the caption is withheld.
        cache: folder of the latents, by default beside the codec: another run finds them there.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    Raises:
        ValueError: the codec was trained on the scenes of seed + 1.
    """
    out, source = Path(out), Path(codec)
    if (source / "run.json").exists() and Run.open(source).settings.get("seed") == seed + 1:
        raise ValueError(
            f"{source} was trained on the scenes of seed {seed + 1}, as seed={seed} would be: take another"
        )
    made = load_codec(source / "codec")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build(net, latent=made.net.latent, width=width, depth=depth, heads=heads)
    world, text = Scenes(seed + 1, size), model.conditions["text"]
    kept = data.latents(
        Drawn(world, scenes),
        made,
        cache or source / f"latents-{size}-{scenes}-{seed + 1}",
        seed=seed,
        dtype=torch.float16,
    )
    done = fit(
        partial(losses.denoising, times=losses.logit_normal, dropout=dropout),
        data.Latents(Drawn(world, scenes, text, pictures=False), kept.x),
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.01,
        optimizer="muon",
        ema=ema,
        decay=0.3,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "latents", "net": net, "dropout": dropout, "scale": made.scale},
        progress=progress,
    )
    done.ema.codec = made
    save(done.ema, out / "model")
    settings = {"net": net, "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema, "w": W}
    settings |= {"size": size, "dropout": dropout}
    run = Run(out, "latents", shape_of(made, size), settings, round(done.seconds, 2))
    run.write()
    return run


def evaluate(made: Run, *, n: int = 1000, nfe: int = 20, w: float = W, seed: int = FRESH) -> dict[str, Any]:
    """Caption match at this size by the held-out judge, and pictures a second with decoding; writes metrics.json."""
    model = made.model()
    asked = captions(n, seed)
    text = model.conditions["text"]
    spoken = model.given(text=text.ids(asked))
    began = time.monotonic()
    x = decoded(model, sample_many(guide(spoken, model, w), n, made.shape, seed, nfe=nfe))
    seconds = time.monotonic() - began
    report = metrics.shapes.judge("held_out").report(asked, x)
    result: dict[str, Any] = {name: value.to_json() for name, value in report.items()}
    result |= {"pictures_per_second": round(n / seconds, 2), "nfe": nfe, "w": w, "seed": seed}
    write_json(made.path / "metrics.json", result | {"numbers_of_a_picture": math.prod(x.shape[1:])})
    return result
