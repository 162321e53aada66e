"""The second half of a cascade: from 32 x 32 to 64 x 64, told the small picture, blurred by noise of a known strength.

low' = (1 - s) up(low) + s eps        s in training uniform in [0, 0.5], told to the network; at use a small constant

Noise in the condition (conditioning augmentation) hides the base model's own mistakes, which training never shows.

Ho et al. 2021 (Cascaded diffusion models); Nichol & Dhariwal 2021, section 4 for upsampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse import losses, metrics, nets
from suffuse.data.shapes import Scenes
from suffuse.denoise import Denoiser
from suffuse.random import noise
from suffuse.recipes.draw import sample_many
from suffuse.recipes.latents import FRESH, Drawn
from suffuse.recipes.run import Run
from suffuse.schedules import Linear
from suffuse.training import fit, save
from suffuse.training.files import write_json

__all__ = ["build", "evaluate", "given", "train", "upsampled"]

STRONGEST, USED = 0.5, 0.1
_STREAM = 0xCA5


def build(*, width: int = 32, multipliers: tuple[int, ...] = (1, 2, 4), blocks: int = 1) -> Denoiser:
    """The untrained model: a U-Net told "low", the small picture at full size, and "noise", its strength s."""
    told = {"low": nets.Spatial(3), "noise": nets.Scalar(optional=False)}
    net = nets.UNet(3, width, multipliers, blocks, attention=(-1,), conditions=told)
    return Denoiser(net, Linear(), predicts="velocity")


def up(low: Tensor) -> Tensor:
    """Twice the size (B, C, 2H, 2W), between the pixels."""
    return F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)


def augmented(low: Tensor, s: Tensor | float, eps: Tensor) -> Tensor:
    """(1 - s) up(low) + s eps, for s a number or (B,)."""
    s = torch.as_tensor(s, dtype=low.dtype, device=low.device).reshape(-1, 1, 1, 1)
    return (1 - s) * up(low) + s * eps


def given(model: Denoiser, low: Tensor, *, s: float = USED, seed: int, first: int = 0) -> Denoiser:
    """The model told small pictures (B, 3, H, W), under noise of strength s that (seed, row) decides.

    Raises:
        ValueError: s is stronger than training has seen.
    """
    if not 0 <= s <= STRONGEST:
        raise ValueError(f"s must be in [0, {STRONGEST}], the strengths of training, got {s:g}")
    eps = noise((*low.shape[:2], 2 * low.shape[2], 2 * low.shape[3]), seed, stream=_STREAM, first=first)
    return model.given(low=augmented(low, s, eps.to(low)), noise=torch.full((len(low),), s))


def upsampled(model: Denoiser, low: Tensor, *, s: float = USED, nfe: int = 20, seed: int = 0) -> Tensor:
    """Pictures (B, 3, 2H, 2W) in [-1, 1] of small ones (B, 3, H, W)."""
    shape = (low.shape[1], 2 * low.shape[2], 2 * low.shape[3])
    return sample_many(given(model, low, s=s, seed=seed), len(low), shape, seed, nfe=nfe).clamp(-1, 1)


def loss(model: Denoiser, batch: Mapping[str, Tensor]) -> Tensor:
    """Denoising of pictures "x", told themselves at half the size and augmented; (B,)."""
    x = batch["x"]
    s = STRONGEST * torch.rand(len(x), device=x.device)
    low = augmented(F.avg_pool2d(x, 2), s, torch.randn_like(x))
    return losses.denoising(model, {"x": x, "low": low, "noise": s}, times=losses.logit_normal)


def train(
    out: str | Path,
    *,
    size: int = 64,
    width: int = 32,
    multipliers: tuple[int, ...] = (1, 2, 4),
    seed: int = 0,
    steps: int = 6000,
    batch_size: int = 16,
    lr: float = 1e-3,
    ema: float = 0.999,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Train an upsampler on scenes as they are drawn, and write a run folder.

    Args:
        out: the folder. size: of the large pictures. width, multipliers: of the U-Net. seed: of weights and scenes.
        steps, batch_size, lr, ema: as for `fit`.
        resume: go on from the newest checkpoint in `out`. overwrite: begin anew where there are some.
    """
    out = Path(out)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = build(width=width, multipliers=multipliers)
    done = fit(
        loss,
        Drawn(Scenes(seed, size), steps * batch_size),
        model,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=0.01,
        ema=ema,
        decay=0.3,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings={"recipe": "cascade"},
        progress=progress,
    )
    save(done.ema, out / "model")
    settings = {"size": size, "seed": seed, "steps": steps, "batch_size": batch_size, "lr": lr, "ema": ema}
    made = Run(out, "cascade", (3, size, size), settings, round(done.seconds, 2))
    made.write()
    return made


def evaluate(made: Run, low: Tensor | None = None, captions: list[str] | None = None, *, n: int = 200) -> Any:
    """How well the small picture is kept, and what the held-out judge reads; writes metrics.json.

    Args:
        made: the run. low: small pictures of a base model, with the captions they were asked for; by default n real
            scenes, averaged.
    Returns:
        "psnr" of the result, averaged back, against its input, in dB; "match" of the results and "base_match" of the
        inputs.
    Raises:
        ValueError: small pictures without captions, or captions without pictures.
    """
    if (low is None) != (captions is None):
        raise ValueError("small pictures come with the captions they were asked for: give both low and captions")
    if low is None or captions is None:
        scenes = Scenes(FRESH, made.shape[-1], counts=(0.0, 1.0), identical=0.0, full=True)(0, n)
        low, captions = F.avg_pool2d(scenes.images, 2), scenes.captions
    x = upsampled(made.model(), low.clamp(-1, 1))
    judge = partial(metrics.shapes.judge("held_out").report, captions)
    result = {
        "psnr": metrics.psnr(F.avg_pool2d(x, 2), low.clamp(-1, 1)).to_json(),
        "match": judge(x)["match"].to_json(),
        "base_match": judge(low)["match"].to_json(),
    }
    write_json(made.path / "metrics.json", result)
    return result
