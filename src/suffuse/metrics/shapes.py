"""Judges of the shapes world: they read a picture back into attributes, and say how often they are wrong themselves.

    judge = sf.metrics.shapes.judge("use")                    # rewards, features; "held_out" makes reported numbers
    judge.read(images).shape, judge.match(captions, images).all, judge.report(captions, images)

Caption match is the share of pictures of which everything that the caption says holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import zoo
from suffuse.data.shapes import Attributes, Match, Scenes, Spec, match, parse
from suffuse.denoise import check_range
from suffuse.metrics.judge_nets import SIDE, ConvJudge, PatchJudge
from suffuse.metrics.judge_rules import Rules, read_by_rules
from suffuse.metrics.result import Measured, proportion

__all__ = ["Judge", "Rules", "accuracy", "build", "filled", "judge", "read_by_rules"]

_NETS: dict[str, type[nn.Module]] = {"use": ConvJudge, "held_out": PatchJudge}


def build(which: str) -> Any:
    """The untrained network of a judge.

    Raises:
        ValueError: another name than "use" and "held_out".
    """
    if which not in _NETS:
        raise ValueError(f"a judge is one of {', '.join(map(repr, _NETS))}, got {which!r}")
    return _NETS[which]()


def filled(which: str, weights: Mapping[str, Tensor]) -> Any:
    """The network of a judge with these weights, in float32 and eval mode."""
    net = build(which)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Judge:
    """A network that reads pictures.

    Attributes:
        name: of the judge. net: the network. accuracy: how often it is right on real scenes, by attribute.
    """

    name: str
    net: Any
    accuracy: dict[str, Measured]

    def read(self, images: Tensor) -> Attributes:
        """What pictures show; -1 where it is none of the world's.

        Args:
            images: (B, 3, S, S) in [-1, 1], S a multiple of 32; larger ones are averaged to 32 x 32.
        Raises:
            ValueError, TypeError: another shape, values that were not scaled, or that are not finite.
        """
        scale, rest = divmod(images.shape[-1], SIDE)
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or rest or not scale:
            raise ValueError(f"a judge reads pictures (B, 3, S, S), S a multiple of 32, got {tuple(images.shape)}")
        check_range(images, "pictures")
        with torch.no_grad():
            small = F.avg_pool2d(images.float().clamp(-1, 1), scale) if scale > 1 else images.float().clamp(-1, 1)
            parts = [self.net.read(part) for part in small.split(512)]
        names = ("count", "shape", "colour", "size", "fill", "x", "y", "background", "style", "depth")
        read = Attributes(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names}, side=SIDE)
        x, y = (torch.where(read.present, v * scale, v) for v in (read.x, read.y))
        return replace(read, x=x, y=y, side=SIDE * scale)

    def match(self, captions: Sequence[str] | Spec, images: Tensor) -> Match:
        """Whether pictures show what captions say, attribute by attribute."""
        return match(captions if isinstance(captions, Spec) else parse(captions), self.read(images))

    def report(self, captions: Sequence[str] | Spec, images: Tensor) -> dict[str, Measured]:
        """Shares of pictures that are right, of those whose caption speaks of it: "match" and each attribute.

        Each says in `how` what the judge itself reaches on real scenes.
        """
        return self.shares(self.match(captions, images))

    def shares(self, told: Match) -> dict[str, Measured]:
        """`report`, from a match that is there already."""
        result = {"match": proportion(int(told.all.sum()), len(told.all), self._how("match"))}
        for name, said in told.said.items():
            if n := int(said.sum()):
                result[name] = proportion(int((told.right[name] & said).sum()), n, self._how(name))
        return result

    def _how(self, name: str) -> str:
        own = self.accuracy.get(name)
        ceiling = f", which itself is right on {own} of real scenes" if own else ""
        what = "everything the caption says" if name == "match" else name
        return f"share of pictures whose {what} is as said, read by the judge {self.name!r}{ceiling}"


def accuracy(judge: Judge, scenes: Scenes, n: int, *, first: int = 0) -> dict[str, Measured]:
    """How often a judge reads n real scenes right: "match" (everything about the scene), and each attribute.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    batches = [scenes(i, min(512, first + n - i)) for i in range(first, first + n, 512)]
    told = [judge.match(Spec.of(batch.attributes), batch.images) for batch in batches]
    names = told[0].right
    right, said = ({k: torch.cat([getattr(t, part)[k] for t in told]) for k in names} for part in ("right", "said"))
    return judge.shares(Match(right, said))


@cache
def judge(which: str = "use") -> Judge:
    """A judge that ships with suffuse: "use", or "held_out", which makes every reported number and nothing else.

    Raises:
        ValueError: another name.
    """
    from safetensors.torch import load_file

    build(which)
    folder = zoo.path(f"judge_{which}")
    about = json.loads((folder / "model.json").read_text())
    known = {
        name: Measured(m["value"], m["n"], m["interval"][0], m["interval"][1], m["how"])
        for name, m in about["accuracy"].items()
    }
    return Judge(which, filled(which, load_file(folder / "model.safetensors")), known)
