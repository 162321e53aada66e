"""A judge of painted things: it reads the pattern and the colour that a silhouette is painted with.

Trained on the bare grounds of friezes of a seed of its own, each pixel's pattern turned, scaled and foreshortened as on
one to three facets of a thing, and darkened where they turn away; what lies beside the silhouette is hidden from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse import metrics
from suffuse.data.shapes import COLOURS, STYLES, Frieze
from suffuse.recipes.frieze import bared
from suffuse.recipes.judges import filled, study, vary, write_judge

__all__ = ["GroundJudge", "lesson", "read_judge", "train_judge"]

STEPS, BATCH, SEED, SIZE = 1500, 48, 7_000_003, 64


class GroundJudge(nn.Module):
    """Pictures (B, 3, H, W) with silhouettes (B, H, W) -> scores of four patterns and ten colours, (B, 14)."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        w = width

        def layer(a: int, b: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU())

        self.body = nn.Sequential(
            layer(4, w, 1), layer(w, 2 * w, 2), layer(2 * w, 2 * w, 1), layer(2 * w, 4 * w, 2), layer(4 * w, 4 * w, 1)
        )
        self.scores = nn.Sequential(nn.Linear(8 * w, 128), nn.SiLU(), nn.Linear(128, len(STYLES) + len(COLOURS)))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Scores (B, 14)."""
        inside = inside[:, None].to(x)
        h = self.body(torch.cat([x.clamp(-1.2, 1.2) * inside, inside], 1))
        seen = F.avg_pool2d(inside, 4)
        mean = (h * seen).sum((2, 3)) / seen.sum((2, 3)).clamp(min=1e-6)
        return self.scores(torch.cat([mean, (h * (seen > 0)).amax((2, 3))], 1))

    @torch.no_grad()
    def read(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the pattern (B,) and the colour (B,) of each picture."""
        style, colour = self(x.float(), inside).split((len(STYLES), len(COLOURS)), 1)
        return style.argmax(1), colour.argmax(1)


def lesson(seed: int, items: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pictures (B, 3, 64, 64), silhouettes (B, 64, 64), patterns (B,) and colours (B,)."""
    n, fine = len(items), 4
    batch = bared(Frieze(seed, 32 * fine, 32 * fine)[items], torch.ones(n, dtype=torch.bool))
    at = (torch.arange(2 * SIZE) + 0.5) / 2 - SIZE / 2
    place = torch.stack(torch.meshgrid(at, at, indexing="ij")[::-1], -1)  # (x, y) in pixels from the middle
    flat = place.reshape(1, -1, 2)
    cuts = [(flat @ _turns(n)[:, :, :1])[..., 0] > 24 * torch.randn(n, 1) for _ in range(2)]
    which = (cuts[0].long() + cuts[1].long()).view(n, 2 * SIZE, 2 * SIZE)  # of three facets
    made = torch.zeros(n, 3, 2 * SIZE, 2 * SIZE)
    for k in range(3):
        squeeze = torch.stack([torch.ones(n), 0.45 + 0.55 * torch.rand(n)], 1)
        size = torch.empty(n, 1, 1).uniform_(0.75, 1.3)
        warp = _turns(n) / (size * squeeze[:, None]) @ _turns(n)
        grid = (flat @ warp + 16 * torch.randn(n, 1, 2)) / 16  # a crop is 32 wide, from -1 to 1
        facet = F.grid_sample(
            batch.images, grid.view(n, 2 * SIZE, 2 * SIZE, 2), align_corners=False, padding_mode="reflection"
        )
        lit = (facet + 1) * torch.empty(n, 1, 1, 1).uniform_(0.7, 1.0) - 1
        made = torch.where((which == k)[:, None], lit, made)
    x = vary(F.avg_pool2d(made, 2))
    angle = torch.atan2(place[::2, ::2, 1], place[::2, ::2, 0])
    far = torch.empty(n, 1, 1).uniform_(14, 30)
    for k in range(1, 5):
        far = far * (1 + 0.5 / k * (torch.rand(n, 1, 1) - 0.5) * torch.cos(k * angle + 6.3 * torch.rand(n, 1, 1)))
    inside = place[::2, ::2].norm(dim=-1) < far
    return x, inside, batch.attributes.style, batch.attributes.background


def _turns(n: int) -> Tensor:
    a = 2 * torch.pi * torch.rand(n)
    return torch.stack([torch.cos(a), -torch.sin(a), torch.sin(a), torch.cos(a)], 1).view(n, 2, 2)


def train_judge(
    out: str | Path, *, steps: int = STEPS, batch_size: int = BATCH, resume: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Train the judge, measure it on other grounds, and write it to a folder.

    Args:
        out: the folder. steps, batch_size: as for `fit`. resume: go on from the newest checkpoint.
    Returns:
        What is written beside the weights: "pattern" and "colour", the shares it reads right.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        net = GroundJudge()
    out = Path(out)

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            x, inside, style, colour = lesson(SEED, batch["item"])
        s, c = model(x, inside).split((len(STYLES), len(COLOURS)), 1)
        return F.cross_entropy(s, style, reduction="none") + F.cross_entropy(c, colour, reduction="none")

    about: dict[str, Any] = {"steps": steps, "batch_size": batch_size}
    done = study(loss, net, out, {"recipe": "grounds"}, seed=SEED, resume=resume, progress=progress, **about)
    judge = done.ema.eval()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        x, inside, style, colour = lesson(SEED + 1, torch.arange(512))
    read = judge.read(x, inside)
    about |= {"seconds": round(done.seconds, 1)}
    for name, mine, truth in (("pattern", read[0], style), ("colour", read[1], colour)):
        hits = int((mine == truth).sum())
        about[name] = metrics.proportion(hits, len(x), f"{name} read right, fresh grounds").to_json()
    write_judge(out, judge, about)
    return about


def read_judge(out: str | Path) -> GroundJudge:
    """The judge that `train_judge` wrote.

    Raises:
        FileNotFoundError: there is none; says how to make one.
    """
    return filled(GroundJudge(), out, "grounds")
