"""Restoring and filling pictures with the model of a run: operators by name, methods by name, pictures side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suffuse import grids, inverse, joint, operators, pictures, samplers
from suffuse.operators import Crops, GaussianNoise, LinearOperator, Mask, Operator
from suffuse.random import noise
from suffuse.recipes.draw import decoded, encoded, picture_shape, read_picture, stamp, told
from suffuse.recipes.run import Run
from suffuse.samplers import sample

__all__ = ["FILLS", "METHODS", "OPERATORS", "fill", "filled", "operator", "restore", "restored", "seams", "shown"]

Size = tuple[int, int]
OPERATORS: dict[str, tuple[tuple[type, ...], Callable[..., Operator]]] = {
    "identity": ((), lambda size: operators.Identity()),
    "blur": ((float,), lambda size, sigma: operators.GaussianBlur(sigma)),
    "motion": ((int, float), lambda size, length, angle: operators.MotionBlur(length, angle)),
    "downsample": ((int,), lambda size, factor: operators.Downsample(factor, size)),
    "grey": ((), lambda size: operators.Greyscale()),
    "random": ((float,), lambda size, keep: Mask.random(size, keep=keep, seed=0)),
    "box": ((int, int, int, int), lambda size, *box: Mask.box(size, box)),  # type: ignore[arg-type]
    "text": ((str,), lambda size, text: Mask.text(size, text)),
    "radon": ((int,), lambda size, angles: operators.Radon(angles, size)),
    "fourier": ((float,), lambda size, keep: operators.MaskedFourier.columns(size, keep=keep, seed=0)),
    "hdr": ((float,), lambda size, gain: operators.HighDynamicRange(gain)),
    "phase": ((float,), lambda size, oversample: operators.PhaseRetrieval(oversample)),
}
"""Name, and what follows it after a colon, separated by commas: "blur:2.0", "box:8,8,16,16"."""


def operator(text: str, size: Size) -> Operator:
    """The operator that a text names, for pictures of this size; "downsample:2 @ blur:1" blurs first.

    Raises:
        ValueError: an unknown name, or numbers that do not fit it.
    """
    made: Operator | None = None
    for part in text.split("@"):
        name, _, rest = part.strip().partition(":")
        if name not in OPERATORS:
            raise ValueError(f"unknown operator {name!r} in {text!r}: one of {', '.join(OPERATORS)}")
        kinds, build = OPERATORS[name]
        given = [v.strip() for v in rest.split(",")] if rest else []
        if len(given) != len(kinds):
            raise ValueError(f"{name} takes {len(kinds)} values after a colon, got {part.strip()!r}")
        try:
            values = [kind(v) for kind, v in zip(kinds, given, strict=True)]
        except ValueError:
            takes = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{name} takes {takes} after a colon, got {part.strip()!r}") from None
        one = build(size, *values)
        made = one if made is None else made @ one
    assert made is not None
    return made


Method = Callable[[Any, Any, Tensor, Tensor, float, int, int], Tensor]


def _by(make: Callable[..., Any], rule: Any) -> Method:
    return lambda m, A, y, z, sigma, nfe, seed: sample(make(m, A, y, sigma), z, sampler=rule, nfe=nfe, seed=seed)


def _sampling(make: Callable[..., Any]) -> Method:
    return lambda m, A, y, z, sigma, nfe, seed: sample(m, z, sampler=make(A, y, sigma), steps=nfe, seed=seed)


def _start(A: Operator, y: Tensor, like: Tensor) -> Tensor:
    return A.pinv(y).to(like) if isinstance(A, LinearOperator) else torch.zeros_like(like)


METHODS: dict[str, Method] = {
    "pigdm": _by(lambda m, A, y, sigma: inverse.pigdm(m, A, y, sigma, spread=0.7), samplers.ddpm),
    "mmps": _by(lambda m, A, y, sigma: inverse.mmps(m, A, y, sigma, iterations=3), samplers.ddpm),
    "dps": _by(lambda m, A, y, sigma: inverse.dps(m, A, y), samplers.ddim(eta=1.0)),
    "mcg": _by(lambda m, A, y, sigma: inverse.mcg(m, A, y), samplers.ddim(eta=1.0)),
    "ddnm": _by(lambda m, A, y, sigma: inverse.ddnm(m, A, y), samplers.ddpm),
    "diffpir": _by(lambda m, A, y, sigma: inverse.diffpir(m, A, y, sigma), samplers.ddim(eta=0.5)),
    "flowchef": _by(lambda m, A, y, sigma: inverse.flowchef(m, A, y, scale=0.5), samplers.ddim),
    "ddrm": _sampling(inverse.ddrm),
    "ddnm_plus": _sampling(inverse.ddnm_plus),
    "repaint": lambda m, A, y, z, sigma, nfe, seed: inverse.repaint(
        m, A, y, z, steps=max(nfe // 5, 1), repeats=5, seed=seed
    ),
    "daps": lambda m, A, y, z, sigma, nfe, seed: inverse.daps(
        m, A, y, z, sigma, steps=max(nfe // 5, 1), inner=5, spread=0.7, seed=seed
    ),
    "pnpdm": lambda m, A, y, z, sigma, nfe, seed: inverse.pnpdm(
        m, A, y, z, sigma, rounds=max(nfe // 5, 1), inner=5, seed=seed
    ),
    "reddiff": lambda m, A, y, z, sigma, nfe, seed: inverse.reddiff(m, A, y, _start(A, y, z), steps=nfe, seed=seed),
    "flowdps": lambda m, A, y, z, sigma, nfe, seed: inverse.flowdps(m, A, y, z, steps=nfe, seed=seed),
    "resample": lambda m, A, y, z, sigma, nfe, seed: inverse.resample(m, A, y, z, sigma, steps=nfe, seed=seed),
}
"""(model, A, y, noise, sigma, evaluations, seed) -> samples, with the options that docs/inverse.md measured."""
_LINEAR = {"pigdm", "mmps", "mcg", "ddnm", "diffpir", "ddrm", "ddnm_plus", "repaint"}
DEFAULT = {False: "mmps", True: "resample"}
"""The method, of a model of pictures and of one of latents: through a decoder no operator is linear."""


def restored(
    model: Any, A: Operator, y: Tensor, z: Tensor, *, method: str, sigma: float, nfe: int, seed: int
) -> Tensor:
    """Pictures that explain y and that the model finds likely, in [-1, 1].

    Args:
        model: the prior. A, y: the measurement of pictures. z: noise (B, C, H, W), of the pictures or their latents.
        method: one of `METHODS`. sigma: standard deviation of the measurement's noise. nfe: evaluations.
    Raises:
        ValueError: an unknown method, or one that needs a linear operator; what the method raises.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(METHODS)}")
    linear: set[str] = set()  # of those that need it, which have it
    if isinstance(A, LinearOperator | operators.Affine):
        linear = _LINEAR if model.codec is None else {"ddnm"}
    able = [name for name in METHODS if name not in _LINEAR or name in linear]
    if method not in able:
        none = f"{A!r} is none" if model.codec is None else "through a decoder none is"
        raise ValueError(f"{method} needs a linear operator, and {none}: take {', '.join(able)}")
    return decoded(model, METHODS[method](model, _seen(model, A), y, z, sigma, nfe, seed))


def _seen(model: Any, A: Operator) -> Operator:
    """The operator as it acts on what the model denoises."""
    return A if model.codec is None else A @ operators.Decode(model.codec)


FILLS = ("repaint", "ddnm", "blended")
FILL = {False: "repaint", True: "ddnm"}
"""The way to fill, by a model of pictures and by one of latents."""


def filled(model: Any, A: Mask, y: Tensor, z: Tensor, *, method: str, nfe: int, seed: int) -> Tensor:
    """Pictures in [-1, 1] that are y, to the last bit, where the mask is true.

    In latents the model's belief is decoded, given its known pixels and encoded again (`inverse.ddnm`); "repaint" and
    "blended" also hold the latents of whole cells, of a picture whose hole is painted over with its surroundings.

    Args:
        model: the prior, guided to what the hole shall show. A, y: what is known.
        z: noise (B, C, H, W), of the pictures or their latents. method: one of `FILLS`. nfe: evaluations.
    Raises:
        ValueError: an unknown method; of the latter two, a mask that leaves no cell of the latents whole.
    """
    if method not in FILLS:
        raise ValueError(f"unknown method {method!r}: one of {', '.join(FILLS)}")
    codec, kept, of = model.codec, A, y
    if codec is not None and method != "ddnm":
        kept, of = _in_latents(model, A, y, seed)
    if codec is not None or method == "ddnm":
        model = inverse.ddnm(model, _seen(model, A), y)
    if method == "ddnm":  # with time travel, or the two parts do not match
        repeats = 3 if codec is None else 5
        grid = grids.time_travel(grids.flow(model.schedule, max(nfe // repeats, 1)), jump=1, repeats=repeats)
        x = sample(model, z, sampler=samplers.ddpm.rising(), grid=grid, seed=seed)
    elif method == "repaint":
        x = inverse.repaint(model, kept, of, z, steps=max(nfe // 5, 1), repeats=5, seed=seed)
    else:
        x = inverse.blended(model, kept, of, z, steps=nfe, seed=seed)
    x = decoded(model, x)
    return torch.where(A._m(x), y.to(x), x)


def _in_latents(model: Any, A: Mask, y: Tensor, seed: int) -> tuple[Mask, Tensor]:
    """The cells of which no pixel is hidden, and the latents there."""
    f = model.codec.factor
    whole = A.known.unflatten(0, (-1, f)).unflatten(2, (-1, f)).all(3).all(1)
    if not bool(whole.any()):
        raise ValueError(
            f"the mask hides a part of every cell of {f} x {f} pixels, which are one latent each: take the method ddnm"
        )
    blur, seen = operators.GaussianBlur(f), A.known.to(y).expand(1, 1, -1, -1)
    around = blur(y * seen) / blur(seen).clamp(min=1e-3)
    latent = Mask(whole)
    return latent, latent(encoded(model, torch.where(A.known, y, around), seed))


def seams(x: Tensor, known: Tensor) -> Tensor:
    """Mean jump between the pixels on the two sides of a mask's edge, (B,): a fill's over its original's is 1 at best.

    Args:
        x: pictures (B, C, H, W). known: (H, W), true and false.
    """
    parts = []
    for axis in (-2, -1):
        jump = x.diff(dim=axis).abs().mean(1).flatten(1)  # (B, pairs)
        parts.append(jump[:, known.to(x.device).diff(dim=axis).flatten()])
    return torch.cat(parts, 1).mean(1)


def shown(y: Tensor, A: Operator, shape: tuple[int, ...]) -> Tensor:
    """A measurement (B, ...) as pictures (B, C, H, W): as it is, enlarged, or as its least-squares picture."""
    if y.ndim != 4 or y.is_complex() or y.shape[1] not in (1, shape[0]):
        y = A.pinv(y) if isinstance(A, LinearOperator) else torch.zeros(len(y), *shape)
    if y.abs().max() > 1.5:  # a sinogram, a spectrum
        y = y / y.abs().max() * 2 - 1
    if tuple(y.shape[-2:]) != shape[1:]:
        y = torch.nn.functional.interpolate(y, shape[1:], mode="nearest")
    return y.expand(-1, shape[0], -1, -1)


def _opened(run: str | Path) -> tuple[Run, Any, int, int]:
    """A run, its model, and channels and side of its pictures."""
    made = Run.open(run)
    if len(made.shape) != 3 or made.shape[1] != made.shape[2]:
        raise ValueError(f"{made.path} makes data of shape {made.shape}, not square pictures (C, H, H)")
    model = made.model()
    return made, model, *picture_shape(model, made.shape)


def _prior(
    made: Run, model: Any, size: int, label: int | None, prompt: str | None, w: float | None
) -> tuple[Any, dict[str, Any]]:
    """The model told what to show, over windows where the picture is larger than what it makes."""
    recipe: dict[str, Any] = {"n": 1, "any_words": False}
    recipe |= {"label": [] if label is None else [label], "prompt": [] if prompt is None else [prompt]}
    model, guidance = told(made, 1, recipe["label"], recipe["prompt"], w, model=model)
    recipe |= guidance
    side, (_, pixels) = made.shape[-1], picture_shape(model, made.shape)
    if size == pixels:
        return model, recipe
    if size < pixels:
        raise ValueError(f"the model makes pictures of {pixels} x {pixels}, a canvas is at least that, got {size}")
    if size * side % pixels:
        raise ValueError(f"a latent is {pixels // side} x {pixels // side} pixels, a canvas some of them, got {size}")
    across = size * side // pixels
    return joint.average(model, Crops(side, side // 2, (across, across)), chunk=64), recipe


def _noise(model: Any, made: Run, n: int, size: int, seed: int) -> Tensor:
    """(n, C, H, H) of what the model denoises, for pictures of this size."""
    across = size if model.codec is None else size // model.codec.factor
    return noise((n, made.shape[0], across, across), seed)


def restore(
    run: str | Path,
    image: Path,
    out: Path,
    *,
    operator: str,
    method: str | None = None,
    sigma: float = 0.05,
    measured: bool = False,
    size: int | None = None,
    label: int | None = None,
    prompt: str | None = None,
    w: float | None = None,
    n: int = 4,
    nfe: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Restore the picture in a file; writes before, measurement and n samples side by side, and the first alone.

    Args:
        run: a run's folder, or the name of a model that ships. image: any picture; its middle square is scaled to the
            size. out: the PNG to write; the first sample alone goes to NAME.after.png beside it.
        operator: as for `operator`. method: of `METHODS`, None is that of `DEFAULT`.
        sigma: standard deviation of the measurement's noise.
        measured: the picture is a measurement already; otherwise it is measured here, noise included.
        size: side of the picture, by default the model's own; a larger one is restored in overlapping windows.
        label, prompt, w: what it shows, of a model that may be told, and guidance. n: samples. nfe: evaluations each.
    Returns:
        Unless it was measured already: "psnr", the mean over samples, and "psnr_measured" of the least-squares picture
        where the operator is linear.
    Raises:
        ValueError: not a picture; an operator, method or size that does not fit.
    """
    made, model, channels, side = _opened(run)
    size = side if size is None else size
    shape = (channels, size, size)
    A = globals()["operator"](operator, (size, size))
    if n < 1 or nfe < 1:
        raise ValueError(f"n and nfe must be at least 1, got {n} and {nfe}")
    model, recipe = _prior(made, model, size, label, prompt, w)
    method, before = method or DEFAULT[model.codec is not None], None
    if measured:
        like = A(torch.zeros(1, *shape))
        if like.ndim != 4 or like.shape[2] != like.shape[3] or like.shape[1] not in (1, 3):
            raise ValueError(f"{A!r} does not measure square pictures, so no picture can be its measurement")
        y = read_picture(image, like.shape[-1], like.shape[1])
    else:
        before = read_picture(image, size, channels)
        y = GaussianNoise(sigma)(A(before), seed=seed)
    y = A(y) if isinstance(A, Mask) else y  # what is hidden says nothing, whatever a file or the noise has there
    after = restored(model, A, y, _noise(model, made, n, size, seed), method=method, sigma=sigma, nfe=nfe, seed=seed)
    about = {"made by": "suffuse restore", "image": str(image), "run": str(made.path), "operator": operator}
    about |= {"method": method, "sigma": sigma, "measured": measured, "size": size, "nfe": nfe, "seed": seed, "n": n}
    about |= {k: recipe[k] for k in ("label", "prompt", "w", "between")} | stamp(made)
    _write(before, shown(y, A, shape), after, out, about)
    if before is None:
        return {}
    found = {"psnr": _psnr(after, before)}
    if isinstance(A, LinearOperator):
        found["psnr_measured"] = _psnr(A.pinv(y).clamp(-1, 1), before)
    return found


def _psnr(x: Tensor, true: Tensor) -> float:
    return (10 * (4 / (x - true).square().flatten(1).mean(1).clamp(min=1e-12)).log10()).mean().item()


def _write(before: Tensor | None, seen: Tensor, after: Tensor, out: Path, about: dict[str, Any]) -> None:
    row = torch.cat([*([] if before is None else [before]), seen, after])
    scale = max(1, 96 // row.shape[-1])
    about = about | {"shown": ("" if before is None else "before, ") + "measurement, samples"}
    pictures.save_png(pictures.grid(row, len(row), scale=scale, gap=2), out, about)
    pictures.save_png(pictures.grid(after[:1], 1, scale=1, gap=0), out.with_suffix(".after.png"), about)


def fill(
    run: str | Path,
    image: Path,
    out: Path,
    *,
    mask: Path | None = None,
    box: Sequence[int] = (),
    grow: int = 0,
    method: str | None = None,
    label: int | None = None,
    prompt: str | None = None,
    w: float | None = None,
    n: int = 4,
    nfe: int = 100,
    seed: int = 0,
) -> None:
    """Paint a part of a picture anew, or beyond its edges; all other pixels stay as they are, to the last bit.

    Args:
        run, image, out, label, prompt, w, n, nfe, seed: as for `restore`.
        mask: a picture, white where to paint. box: (top, left, height, width) to paint, in pixels of the model's
            size. grow: pixels to paint beyond each edge. One of the three.
        method: of `FILLS`, None is that of `FILL`.
    Raises:
        ValueError: not a picture; a mask that hides nothing or all; none or several of mask, box and grow.
    """
    made, model, channels, side = _opened(run)
    if (mask is not None) + bool(box) + bool(grow) != 1:
        raise ValueError("say what to paint: one of --mask, --box and --grow")
    if n < 1 or nfe < 1 or grow < 0:
        raise ValueError(f"n and nfe must be at least 1 and grow at least 0, got {n}, {nfe} and {grow}")
    cell = side // made.shape[-1]  # pixels of a latent
    if 2 * grow % cell:
        raise ValueError(
            f"a latent is {cell} x {cell} pixels: grow by a multiple of {cell // math.gcd(2, cell)}, got {grow}"
        )
    size = side + 2 * grow
    before = torch.nn.functional.pad(read_picture(image, side, channels), (grow,) * 4)
    if mask is not None:
        A = Mask(read_picture(mask, side, 1)[0, 0] < 0)
    elif grow:
        A = Mask.box((size, size), (grow, grow, side, side), inside=True)
    elif len(box) == 4:
        A = Mask.box((side, side), (box[0], box[1], box[2], box[3]))
    else:
        raise ValueError(f"a box is top, left, height and width, got {len(box)} numbers")
    hidden = int((~A.known).sum())
    if hidden in (0, A.known.numel()):
        raise ValueError(f"the mask hides {hidden} of {A.known.numel()} pixels: white is painted, black stays")
    model, recipe = _prior(made, model, size, label, prompt, w)
    method, y = method or FILL[model.codec is not None], A(before)
    after = filled(model, A, y, _noise(model, made, n, size, seed), method=method, nfe=nfe, seed=seed)
    about = {"made by": "suffuse fill", "image": str(image), "run": str(made.path), "method": method, "nfe": nfe}
    about |= {"mask": str(mask) if mask else None, "box": list(box), "grow": grow, "seed": seed, "n": n}
    about |= {k: recipe[k] for k in ("label", "prompt", "w", "between")} | stamp(made)
    _write(None if grow else before, y, after, out, about)
