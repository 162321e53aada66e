"""Two small towers for the shapes world: pictures and captions to unit vectors that agree where they belong together.

image: the convolutions of `ConvJudge`; a few learned queries look at their 8 x 8 cells and at each other, twice.
text:  words that read each other in two layers; the mean of those that are there.

Each ends in a linear layer and is divided by its length.   Radford et al. 2021, figure 3, in miniature; queries as
the latents of Jaegle et al. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from suffuse.data.shapes import VOCABULARY
from suffuse.metrics.judge_nets import GRID, SIDE, ConvJudge
from suffuse.nets.attention import CrossAttention, Layer
from suffuse.nets.embed import positions
from suffuse.nets.words import Words

__all__ = ["SIDE", "WORDS", "ImageTower", "TextTower", "TwoTowers", "contrast"]

WORDS = Words(VOCABULARY, 128, layers=2)
WARMEST = 100.0
"""The most that a cosine is multiplied by, as in CLIP."""


class ImageTower(nn.Module):
    """(B, 3, 32, 32) -> unit vectors (B, size)."""

    def __init__(self, size: int, width: int = 128, queries: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.convolutions = ConvJudge(width)
        for head in ("heat", "parts", "ground"):
            delattr(self.convolutions, head)
        self.whole = nn.Linear(3 * width, width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.cells = nn.LayerNorm(width)
        self.looks = nn.ModuleList(CrossAttention(width, width, 4) for _ in range(depth))
        self.layers = nn.ModuleList(Layer(width, 4) for _ in range(depth))
        for look in self.looks:
            nn.init.xavier_uniform_(look.out.weight)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear((queries + 1) * width, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        cells, pooled = self.convolutions.features(x)
        cells = self.cells(cells.flatten(2).transpose(1, 2))
        cells = cells + positions((GRID, GRID), cells.shape[-1], cells.device).to(cells.dtype)
        whole = self.whole(pooled)[:, None]
        h = torch.cat([whole, self.queries.to(whole.dtype).expand(len(x), -1, -1)], 1)
        seen = torch.ones(1, 1, 1, GRID**2, dtype=torch.bool, device=x.device)
        for look, layer in zip(self.looks, self.layers, strict=True):
            h = layer(h + look(h, cells, seen))
        return F.normalize(self.out(self.norm(h).flatten(1)).float(), dim=-1)


class TextTower(nn.Module):
    """Ids (B, L) of `WORDS`, -1 where there is none -> unit vectors (B, size)."""

    def __init__(self, size: int, width: int = 128) -> None:
        super().__init__()
        self.words = WORDS.embedder(width)
        self.out = nn.Linear(width, size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        tokens, visible = self.words(ids)
        share = visible / visible.sum(1, keepdim=True)
        return F.normalize(self.out(torch.einsum("blw,bl->bw", tokens, share.to(tokens.dtype))).float(), dim=-1)


class TwoTowers(nn.Module):
    """Both towers, and the temperature that they are trained at, as the logarithm of its inverse."""

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        self.image, self.text = ImageTower(size), TextTower(size)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def read(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, size) of captions."""
        return self.text(WORDS.ids(captions, "captions").to(self.logit_scale.device))


def contrast(image: Tensor, text: Tensor, logit_scale: Tensor, wrong: Tensor, usable: Tensor) -> Tensor:
    """(B,): symmetric cross entropy of who belongs to whom; a picture also has to refuse wrong captions.

    s_ij = e^logit_scale image_i . text_j
    loss_i = -1/2 (log softmax_j [s_ij, wrong ones]_i + log softmax_j [s_ji]_i)

    Args:
        image, text: unit vectors (B, D). logit_scale: log of the inverse temperature, ().
        wrong: unit vectors (M, D) of captions of no picture. usable: (M,) bool, which of them are to be used.

    Radford et al. 2021, figure 3; wrong captions as Yuksekgonul et al. 2023 have them.
    """
    own = torch.arange(len(image), device=image.device)
    scale = logit_scale.exp().clamp(max=WARMEST)
    scores = scale * image @ text.T
    refused = (scale * image @ wrong.T).masked_fill(~usable, -torch.inf)
    to_text = F.cross_entropy(torch.cat([scores, refused], 1), own, reduction="none")
    return (to_text + F.cross_entropy(scores.T, own, reduction="none")) / 2
