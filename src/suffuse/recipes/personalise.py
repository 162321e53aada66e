"""A model made personal from a few pictures: a subject by DreamBooth, a word by textual inversion, a style by LoRA.

suffuse personalise shapes --images photos/ --token "[v]" --class heart

The result is a run folder like any other: `model/` with everything in its weights, which `suffuse sample` takes; and
what was learned alone, in lora.safetensors or word.safetensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import adapters, losses
from suffuse.adapters.words import Grown
from suffuse.data.decode import picture
from suffuse.data.shapes import Scenes
from suffuse.denoise import Denoiser
from suffuse.nets.words import Words, words
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
STEPS = {"dreambooth-lora": 1500, "dreambooth": 300, "inversion": 400, "style": 1500}
LR = {"dreambooth-lora": 2e-3, "dreambooth": 1e-4, "inversion": 1e-2, "style": 1e-3}
DROPOUT = 0.1
"""How often a style's caption is withheld: guidance is away from what is told nothing, which is to have it too."""
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
    priors: int = 400,
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
        token: the new word, which a style has not. noun: of its class, which the word begins as.
        method: of `METHODS`.
        captions: of the pictures, by default what text files beside them say. What they name besides the token, such
            as where it is, does not become a part of it. Without any: "a NOUN" for a style, `TEMPLATES` otherwise.
        prior: weight of what is to stay as it is, see `adapters.prior_preserving`; 0 is without.
        priors: how many pictures the base draws for that: half of the class, others of the world and of nothing.
        rank: of the LoRA. steps, batch_size, lr, seed, resume, overwrite: as for `fit`.
        w: how strongly the model is guided where `suffuse sample` is told nothing else.
    Raises:
        ValueError: an unknown method; a token that is known, or several words; unknown words in captions, or captions
            of another number, or without the token; pictures of another size or beyond [-1, 1]; a prior that is
            negative, or without priors.
        TypeError: the base is not told words.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not (math.isfinite(prior) and prior >= 0):
        raise ValueError(f"prior must be a finite number of at least 0, got {prior:g}")
    style, preserves = method == "style", prior > 0 and method in ("dreambooth", "dreambooth-lora")
    if preserves and priors < 1:
        raise ValueError(f"priors must be at least 1 where prior is above 0, got {priors}: prior=0 is without")
    x, beside = _checked(images) if isinstance(images, Tensor) else pictures_in(images, shapes.SIDE)
    if captions is not None and len(captions) != len(x):
        raise ValueError(f"captions has {len(captions)} values for {len(x)} pictures: give one for each")
    out, (model, weights) = Path(out), base_of(base)
    if not isinstance(model.conditions.get("text"), Words):
        raise TypeError("this recipe personalises models that are told words; for others see sf.adapters")
    which, texts = _told(captions or beside, None if style else token, noun)
    seen = hashlib.sha256(((x + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    model.net.float()  # type: ignore[attr-defined]  # weights of a model that ships are bf16, too coarse to learn in
    x, learns = encoded(model, x, seed), _learning(model, method, token, noun, rank, seed)
    data = {"x": x[which], "text": _ids(learns, texts)}
    about = {
        "recipe": "personalise",
        "base": str(base),
        "weights": weights,
        "method": method,
        "token": token,
        "class": noun,
        "prior": prior,
        "priors": priors if preserves else 0,
        "rank": rank,
        "captions": texts,
        "pictures": seen,
        "dropout": DROPOUT if style else 0.0,
    }
    if preserves:
        kept = out / f"kept-{weights}-{noun}-{seed}.safetensors"
        if overwrite:
            kept.unlink(missing_ok=True)
        data = _beside(data, _priors(model, noun, priors, seed, kept))
    times = partial(losses.logit_normal, mean=shapes.NOISIER)
    loss = adapters.prior_preserving(
        partial(losses.denoising, times=times, dropout=about["dropout"]),
        prior if preserves else 0.0,
        partial(losses.imitation, base=model, times=times),
    )
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
    settings = about | {"steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
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


def _ids(model: Denoiser, texts: Sequence[str | None]) -> Tensor:
    """Numbers of words (N, WORDS), of None all padding: told nothing."""
    known: Any = model.conditions["text"]
    ids = torch.full((len(texts), shapes.WORDS), -1)
    for i, text in enumerate(texts):
        if text is not None:
            ids[i] = known.ids([text], length=shapes.WORDS)[0]
    return ids


def _told(captions: Sequence[str | None], token: str | None, noun: str) -> tuple[list[int], list[str]]:
    """Which pictures, and what is said of them: their captions, or each template of each."""
    if token is None:
        return list(range(len(captions))), [caption or f"a {noun}" for caption in captions]
    if not any(captions):
        each = [t.format(token) for t in TEMPLATES]
        return list(range(len(captions))) * len(each), [text for text in each for _ in captions]
    texts = [caption or TEMPLATES[0].format(token) for caption in captions]
    for i, text in enumerate(texts):
        if token.lower() not in words(text):
            raise ValueError(
                f"caption {i} must name the token, as 'a {token} on a plain white background' does, got {text!r}: "
                "write it so, or leave the caption out"
            )
    return list(range(len(texts))), texts


def _beside(data: dict[str, Tensor], prior: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each row with a partner that is to stay as it is; the shorter of the two is repeated."""
    n = max(len(data["x"]), len(prior["x"]))
    i = torch.arange(n)
    return {name: v[i % len(v)] for name, v in data.items()} | {
        f"prior_{name}": v[i % len(v)] for name, v in prior.items()
    }


def _priors(model: Denoiser, noun: str, n: int, seed: int, file: Path) -> dict[str, Tensor]:
    """What the base samples without guidance, of the class, of the world, of nothing; kept in `file`.

    Guided samples would be learned as they are, and guided once more when the model is used.
    """
    if file.exists() and len((found := read_tensors(file))["x"]) == n:
        return found
    others = Scenes(seed + 7_000_003)(0, n).captions
    of_class = [t.format(noun) for t in TEMPLATES]
    texts = [of_class[i // 2 % len(of_class)] if i % 2 else None if i % 4 else others[i] for i in range(n)]
    told = _ids(model, texts)
    x = shapes.sampled(model.given(text=told), model, n, seed + 7_000_003, w=1.0, nfe=20)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, {"x": x, "text": told})
    return {"x": x, "text": told}
