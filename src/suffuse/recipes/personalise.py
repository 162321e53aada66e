"""A model made personal from a few pictures: a subject by DreamBooth, a word by textual inversion, a style by LoRA.

suffuse personalise shapes --images photos/ --token "[v]" --class heart

The result is a run folder like any other: `model/` with everything in its weights, which `suffuse sample` takes; and
what was learned alone, in lora.safetensors or word.safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import adapters, losses
from suffuse.adapters.words import Grown
from suffuse.data.decode import picture
from suffuse.denoise import Denoiser
from suffuse.nets.words import Words
from suffuse.recipes import shapes
from suffuse.recipes.control import base_of
from suffuse.recipes.draw import encoded
from suffuse.recipes.run import Run
from suffuse.training import Fit, fit, save
from suffuse.training.files import read_tensors, write_tensors

__all__ = ["METHODS", "pictures_in", "train"]

METHODS = ("dreambooth-lora", "dreambooth", "inversion", "style")
WHERE = adapters.ATTENTION + r"|mlp\.\d+$|\bff\.net\."
"""LoRA for a subject or a style sits on attention and MLPs."""
TEMPLATES = ("a {}", "a large {}", "a picture of a {}")
STEPS = {"dreambooth-lora": 1500, "dreambooth": 300, "inversion": 400, "style": 600}
LR = {"dreambooth-lora": 2e-3, "dreambooth": 1e-4, "inversion": 1e-2, "style": 2e-3}
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def pictures_in(folder: str | Path, size: int, channels: int = 3) -> tuple[Tensor, list[str | None]]:
    """Pictures of a folder (N, channels, size, size) in [-1, 1], and the captions in text files beside them.

    Raises:
        ValueError: no folder, or no picture in it that can be read.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: name the folder that the pictures are in")
    found, captions = [], []
    for path in sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in ENDINGS):
        pixels, _ = picture(path.read_bytes(), size, channels=channels, smallest=1)
        if pixels is not None:
            text = path.with_suffix(".txt")
            found.append(torch.tensor(pixels).reshape(channels, size, size).float() / 127.5 - 1)
            captions.append(text.read_text().strip() if text.exists() else None)
    if not found:
        raise ValueError(f"{folder} has no picture that can be read: {', '.join(sorted(ENDINGS))}")
    return torch.stack(found), captions


def train(
    base: str | Path,
    out: str | Path,
    images: str | Path | Tensor,
    *,
    token: str = "[v]",
    noun: str = "shape",
    method: str = "dreambooth-lora",
    captions: Sequence[str] | None = None,
    prior: float = 1.0,
    priors: int = 200,
    rank: int = 8,
    steps: int | None = None,
    batch_size: int = 8,
    lr: float | None = None,
    w: float = shapes.SAMPLING["w"],
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Personalise a run.

    Args:
        base: a run folder told words, finished or with checkpoints, or the name of one that ships.
        out: the folder. images: a folder of pictures, or pictures (N, C, H, W) in [-1, 1].
        token: the new word. noun: of its class, which it begins as. A style has neither.
        method: of `METHODS`. captions: of the pictures, for "style"; by default text files beside them, else `noun`.
        prior: weight of the class's own pictures, see `adapters.prior_preserving`; 0 is without.
        priors: how many the base draws of them, guided by `w`.
        rank: of the LoRA. steps, batch_size, lr, seed, resume, overwrite: as for `fit`.
    Raises:
        ValueError: an unknown method; a token that is known, or several words; unknown words in captions, or captions
            of another number; pictures of another size or beyond [-1, 1]; a prior that is negative, or without priors.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not (math.isfinite(prior) and prior >= 0):
        raise ValueError(f"prior must be a finite number of at least 0, got {prior:g}")
    style, preserves = method == "style", prior > 0 and method in ("dreambooth", "dreambooth-lora")
    if preserves and priors < 1:
        raise ValueError(f"priors must be at least 1 where prior is above 0, got {priors}: prior=0 is without")
    x, beside = _checked(images) if isinstance(images, Tensor) else pictures_in(images, shapes.SIDE)
    if style and captions is not None and len(captions) != len(x):
        raise ValueError(f"captions has {len(captions)} values for {len(x)} pictures: give one for each")
    out, (model, weights) = Path(out), base_of(base)
    x, learns = encoded(model, x, seed), _learning(model, method, token, noun, rank, seed)
    learns.net.float()  # type: ignore[attr-defined]  # weights of a model that ships are bf16, too coarse to learn in
    told = [c or f"a {noun}" for c in (captions or beside)] if style else [t.format(token) for t in TEMPLATES]
    about = {
        "recipe": "personalise",
        "base": str(base),
        "weights": weights,
        "method": method,
        "token": token,
        "class": noun,
        "prior": prior,
        "rank": rank,
    }
    of_class = [t.format(noun) for t in TEMPLATES]
    data = _rows(
        x,
        told,
        _priors(model, of_class, priors, w, seed, out / f"class-{weights}-{noun}.safetensors") if preserves else None,
        style,
    )
    prompts = told + of_class

    def one(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        said: Any = {"x": batch["x"], "text": [prompts[i] for i in batch["prompt"].tolist()]}
        return losses.denoising(model, said, times=partial(losses.logit_normal, mean=shapes.NOISIER))

    loss = adapters.prior_preserving(one, prior if preserves else 0.0)
    steps, lr = steps or STEPS[method], lr or LR[method]
    done: Fit = fit(
        lambda _, batch: loss(learns, batch),
        data,
        adapters.Learned(learns),
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        ema=0.99,
        seed=seed,
        out=out,
        resume=resume,
        overwrite=overwrite,
        settings=about,
        log_every=25,
        progress=progress,
    )
    done.ema.into(learns)
    whole = _kept(learns, out, method, token)
    save(whole, out / "model")
    settings = about | {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed, "pictures": len(x)}
    made = Run(out, "personalise", model.shape or (), settings | shapes.SAMPLING | {"w": w}, round(done.seconds, 2))
    made.write()
    return made


def _checked(images: Tensor) -> tuple[Tensor, list[str | None]]:
    """Pictures that are given, which have no captions beside them."""
    size = (3, shapes.SIDE, shapes.SIDE)
    if images.shape[1:] != size or not len(images) or not images.is_floating_point():
        wants = ", ".join(map(str, size))
        raise ValueError(f"images must be (N, {wants}) of floats, got {tuple(images.shape)} of {images.dtype}")
    low, high = images.aminmax()
    if not (low >= -1.01 and high <= 1.01):
        raise ValueError(f"images must lie in [-1, 1], got {low:g} to {high:g}")
    return images, [None] * len(images)


def _learning(model: Denoiser, method: str, token: str, noun: str, rank: int, seed: int) -> Denoiser:
    """The model with what is trained."""
    if method == "style":
        return adapters.lora(model, WHERE, rank=rank, name="style", seed=seed)
    if method == "dreambooth-lora":
        model = adapters.lora(model, WHERE, rank=rank, name="subject", seed=seed)
    if not isinstance(model.conditions.get("text"), Words):
        raise TypeError("this recipe personalises models that are told words; for others see sf.adapters")
    new = adapters.new_word(model, token, noun)[0]
    if method == "dreambooth":
        return adapters.own(new)
    if method == "dreambooth-lora":  # what was attached before the word is trained with it
        for module in new.net.modules():  # type: ignore[attr-defined]
            if isinstance(module, adapters.LoRA):
                module.requires_grad_(False)
                module.down.requires_grad_(True)
                module.up.requires_grad_(True)
    return new


def _kept(learns: Denoiser, out: Path, method: str, token: str) -> Denoiser:
    """Write what was learned alone; the model with all of it in its weights."""
    words = [m for m in learns.net.modules() if isinstance(m, Grown)]  # type: ignore[attr-defined]
    if words:
        write_tensors(out / "word.safetensors", {token.lower(): words[0].row[None]})
    if method in ("style", "dreambooth-lora"):
        adapters.save_lora(learns, out / "lora.safetensors")
        learns = adapters.baked(learns)
    return adapters.fixed(learns)


def _rows(x: Tensor, told: list[str], prior: Tensor | None, style: bool) -> dict[str, Tensor]:
    """Pictures and numbers of their prompts, each with a partner of the class where that is preserved."""
    if style:
        return {"x": x, "prompt": torch.arange(len(x))}
    n = max(len(x) * len(told), 0 if prior is None else len(prior))
    i = torch.arange(n)
    rows = {"x": x[i % len(x)], "prompt": (i // len(x)) % len(told)}
    if prior is None:
        return rows
    return rows | {"prior_x": prior[i % len(prior)], "prior_prompt": len(told) + i % len(prior) % len(TEMPLATES)}


def _priors(model: Denoiser, prompts: list[str], n: int, w: float, seed: int, file: Path) -> Tensor:
    """What the base itself samples of the class, prompt i % 3 for sample i; kept in `file`."""
    if file.exists() and len(kept := read_tensors(file)["x"]) == n:
        return kept
    spoken = model.given(text=[prompts[i % len(prompts)] for i in range(n)])
    x = shapes.sampled(spoken, model, n, seed + 7_000_003, w=w, nfe=20)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, {"x": x})
    return x
