"""How well captions fit pictures, by two towers that lead both into one space: CLIP, or a small one of our own.

towers = sf.metrics.clip("shapes")                       # ships with suffuse; or clip("a/local/folder"), or
towers = sf.metrics.clip(model, processor)               # transformers' CLIPModel and CLIPProcessor
towers.image(images), towers.text(captions)              # (B, D) unit vectors, differentiable in the images

score = 100 max(cos(image, text), 0)                     Hessel et al. 2021, whose factor w is 2.5 where ours is 100
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from suffuse import zoo
from suffuse.denoise import check_range
from suffuse.metrics.clip_nets import SIDE, TwoTowers
from suffuse.metrics.result import Measured, mean, proportion

__all__ = ["Towers", "clip", "clip_choice", "clip_retrieval", "clip_score"]

_SETTINGS = ("image_mean", "image_std", "crop_size")


@dataclass(frozen=True, eq=False)
class Towers:
    """Pictures and captions as vectors whose cosine says how well they fit.

    Attributes:
        name: what they are called in results. net: both networks, to be moved to a device or frozen.
        see: images (B, 3, H, W) in [-1, 1] -> (B, D). read: captions -> (B, D).
    """

    name: str
    net: Any
    see: Callable[[Tensor], Tensor]
    read: Callable[[Sequence[str]], Tensor]

    def image(self, images: Tensor) -> Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W) in [-1, 1], with gradients.

        Raises:
            ValueError, TypeError: another shape, a size that the towers cannot take, or values that were not scaled.
            RuntimeError: the networks are in training mode.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        check_range(images, "images")
        return self._unit(self.see, images)

    def text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D) of captions.

        Raises:
            ValueError: no list of texts, or one that the towers cannot read: too long, or unknown words.
            RuntimeError: the networks are in training mode.
        """
        if isinstance(captions, str) or not captions or not all(isinstance(c, str) for c in captions):
            raise ValueError(f"captions must be a list of texts, got {captions!r:.80}")
        return self._unit(self.read, list(captions))

    def _unit(self, tower: Callable[[Any], Tensor], told: Any) -> Tensor:
        if self.net.training:
            raise RuntimeError(f"the towers {self.name!r} are in training mode: call .eval() on them first")
        return F.normalize(tower(told).float(), dim=-1)

    @staticmethod
    def of_shapes(weights: Mapping[str, Tensor]) -> Towers:
        """The towers of the shapes world with these weights, in float32, frozen."""
        net = TwoTowers()
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        net.eval().requires_grad_(False)

        def see(images: Tensor) -> Tensor:
            scale, rest = divmod(images.shape[2], SIDE)
            if images.shape[2] != images.shape[3] or rest or not scale:
                raise ValueError(
                    f"the towers 'shapes' see pictures (B, 3, S, S), S a multiple of {SIDE}, got {tuple(images.shape)}"
                )
            return net.image(F.avg_pool2d(images.float(), scale) if scale > 1 else images.float())

        return Towers("shapes", net, see, net.read)


def clip(model: Any = "shapes", processor: Any = None) -> Towers:
    """Towers that ship with suffuse, or someone's CLIP.

    Pictures for a CLIP are resized so that their shorter side is its own (bicubic, antialiased), cropped to the
    middle square, and normalised by the processor's mean and standard deviation: as its processor does, but in
    tensors, so that gradients pass. What the resizing overshoots is clamped, as it is in 8 bits.

    Args:
        model: "shapes"; a local folder that transformers saved a CLIPModel and its processor to; or a `CLIPModel`.
        processor: with a model, its `CLIPProcessor`: a `.tokenizer`, and an `.image_processor` or its settings.
    Raises:
        ValueError: a name that is neither "shapes" nor a folder (nothing is ever downloaded); a processor without a
            model, or none with one.
        FileNotFoundError: the folder lacks weights in safetensors, or a file that says how pictures are prepared.
    """
    if isinstance(model, str | os.PathLike):
        if processor is not None:
            raise ValueError("a processor goes with a CLIPModel; a name or folder brings its own")
        if str(model) == "shapes":
            from safetensors.torch import load_file

            return Towers.of_shapes(load_file(zoo.path("clip_shapes") / "model.safetensors"))
        return _of_folder(Path(model))
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"clip takes 'shapes', a local folder or a CLIPModel, got {type(model).__name__}")
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise ValueError(
            "a CLIPModel needs its processor, with a tokenizer and an image_processor, "
            f"got {None if processor is None else type(processor).__name__}"
        )
    return _of_model(model, processor.tokenizer, processor.image_processor)


def _of_folder(folder: Path) -> Towers:
    if not folder.is_dir():
        raise ValueError(f"clip takes 'shapes', a local folder or a CLIPModel: there is no folder {str(folder)!r} here")
    settings = prepared(folder)
    model, transformers = loaded("CLIPModel", folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return _of_model(model, tokenizer, settings, name=folder.name)


def loaded(kind: str, folder: Path) -> tuple[Any, Any]:
    """A model of transformers, of this class, whole and in eval mode; and transformers."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"transformers cannot be imported ({error}): pip install 'suffuse[hub]'") from error
    how = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    model, report = getattr(transformers, kind).from_pretrained(folder, **how)
    if missing := sorted(report["missing_keys"]):
        name = type(model).__name__
        raise ValueError(f"{folder}: {len(missing)} weights of a {name} are missing, the first is {missing[0]}")
    return model.eval(), transformers


def prepared(folder: Path) -> dict[str, Any]:
    """How pictures are prepared, read from the files, since the class that does it wants torchvision."""
    if not any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json")):
        raise FileNotFoundError(f"{folder} has no model.safetensors: save the model as safetensors, never as a pickle")
    for file, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / file).exists():
            data = json.loads((folder / file).read_text())
            return data if part is None else data[part]
    raise FileNotFoundError(f"{folder} has neither preprocessor_config.json nor processor_config.json")


def _of_model(model: Any, tokenizer: Any, pictures: Any, name: str | None = None) -> Towers:
    side, longest = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    settings = pictures if isinstance(pictures, Mapping) else {key: getattr(pictures, key, None) for key in _SETTINGS}
    if missing := [key for key in ("image_mean", "image_std") if settings.get(key) is None]:
        raise ValueError(f"the processor does not say its {' and '.join(missing)}")
    if crop_side(settings.get("crop_size")) not in (None, side):
        raise ValueError(f"the processor crops to {crop_side(settings['crop_size'])} pixels, the model sees {side}")

    def see(images: Tensor) -> Tensor:
        like = model.visual_projection.weight
        pixels = normalised(middle(images, side), settings)
        return _pooled(model.get_image_features(pixel_values=pixels.to(like.dtype)))

    def read(captions: Sequence[str]) -> Tensor:
        told = tokenizer(list(captions), padding=True, return_tensors="pt")
        lengths = told["attention_mask"].sum(1)
        if int(lengths.max()) > longest:
            at = int(lengths.argmax())
            raise ValueError(
                f"captions may have {longest} tokens, number {at} has {int(lengths[at])}: {captions[at]!r:.80}"
            )
        told = {key: told[key].to(model.device) for key in ("input_ids", "attention_mask")}
        return _pooled(model.get_text_features(**told))

    return Towers(name or getattr(model, "name_or_path", "") or "CLIP", model, see, read)


def middle(images: Tensor, side: int, edge: int | None = None) -> Tensor:
    """The middle square of pictures whose shorter edge is resized: (B, 3, H, W) -> (B, 3, side, side).

    Args:
        images: as above. side: of the square. edge: what the shorter edge becomes, at least the side; None is the side.
    """
    edge = side if edge is None else edge
    h, w = images.shape[2:]
    if min(h, w) != edge:
        h, w = (int(length * edge / min(h, w)) for length in (h, w))
        images = F.interpolate(images, size=(h, w), mode="bicubic", antialias=True, align_corners=False)
    top, left = (h - side) // 2, (w - side) // 2
    return images[..., top : top + side, left : left + side]


def normalised(images: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Pictures in [-1, 1] by a processor's mean and standard deviation, which are of [0, 1]; overshoots are cut."""
    centre, spread = (torch.tensor(settings[key]).view(3, 1, 1).to(images) for key in ("image_mean", "image_std"))
    return ((images.clamp(-1, 1) + 1) / 2 - centre) / spread


def crop_side(crop: Any) -> int | None:
    """The height of a processor's crop_size, which may be one number, or none at all."""
    return crop if crop is None or isinstance(crop, int) else crop["height"]


def _pooled(features: Any) -> Tensor:
    """Newer versions of transformers return the vectors in an output with more."""
    return features if isinstance(features, Tensor) else features.pooler_output


def clip_score(images: Tensor, captions: Sequence[str], towers: Towers) -> Measured:
    """Mean of 100 max(cos(image, caption), 0); the interval is by the mean's standard error.

    The scale is that of most libraries; Hessel et al. 2021 multiply by 2.5 instead of 100. Scores of different towers
    cannot be compared.

    Args:
        images: (B, 3, H, W) in [-1, 1], B >= 2. captions: B of them. towers: from `clip`.
    Raises:
        ValueError: not as many captions as images, or fewer than two.
    """
    image, text = _both(images, captions, towers)
    convention = "100 max(cos, 0); 2.5 max(cos, 0) in Hessel et al. 2021"
    scores = 100 * (image * text).sum(1).clamp(min=0)
    return mean(scores, "mean over images", features=f"towers {towers.name!r}", convention=convention)


def clip_retrieval(
    images: Tensor, captions: Sequence[str], towers: Towers, *, among: int = 64, seed: int = 0
) -> Measured:
    """R@1: how often an image's own caption scores higher than all others of `among` captions.

    Args:
        images: (B, 3, H, W) in [-1, 1]. captions: B of them. towers: from `clip`.
        among: captions that an image chooses from: its own, and others drawn from the B. One of the same words as its
            own is no rival. seed: of the draw.
    Raises:
        ValueError: not as many captions as images, or among is not in 2..B.
    """
    n = len(captions)
    if not 2 <= among <= n:
        raise ValueError(f"among must be in 2..{n}, the number of captions, got {among}")
    image, text = _both(images, captions, towers)
    draw = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    others = draw.fill_diagonal_(2).argsort(1)[:, : among - 1].to(text.device)
    kinds = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    kind = torch.tensor([kinds[caption] for caption in captions], device=text.device)
    scores = image @ text.T
    lost = (scores.gather(1, others) >= scores.diagonal()[:, None]) & (kind[others] != kind[:, None])
    how = f"share of images whose own caption scores highest of {among}"
    return proportion(n - int(lost.any(1).sum()), n, how, features=f"towers {towers.name!r}")


def clip_choice(images: Tensor, captions: Sequence[str], others: Sequence[str], towers: Towers) -> Measured:
    """How often an image's caption scores higher than another caption made for it, a wrong one; a tie is lost.

    Args:
        images: (B, 3, H, W) in [-1, 1]. captions, others: B of them each. towers: from `clip`.
    Raises:
        ValueError: not as many captions, or others, as images.
    """
    image, true = _both(images, captions, towers)
    false = _texts(others, len(images), towers)
    hits = (image * true).sum(1) > (image * false).sum(1)
    how = "share of images whose caption scores higher than the wrong one"
    return proportion(int(hits.sum()), len(hits), how, features=f"towers {towers.name!r}")


def _texts(captions: Sequence[str], n: int, towers: Towers) -> Tensor:
    if isinstance(captions, str) or len(captions) != n:
        raise ValueError(f"{n} images need {n} captions, got {1 if isinstance(captions, str) else len(captions)}")
    if n == 0:
        raise ValueError("nothing can be measured on no images")
    with torch.no_grad():
        return torch.cat([towers.text(captions[i : i + 256]) for i in range(0, n, 256)])


def _both(images: Tensor, captions: Sequence[str], towers: Towers) -> tuple[Tensor, Tensor]:
    text = _texts(captions, len(images), towers)
    with torch.no_grad():
        image = torch.cat([towers.image(part) for part in images.split(256)])
    return image, text
