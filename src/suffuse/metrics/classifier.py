"""A small image classifier: reads labels, and its last hidden layer is the feature space of the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Classifier", "classifier_loss"]


@dataclass(eq=False, repr=False)
class Classifier(nn.Module):
    """Two 3x3 convolutions at full and half size, then `features` numbers, then `classes` scores.

    Args:
        channels, size: of the images, (B, channels, size, size). classes: how many. features: size of the layer
            before the scores. width: channels of the first convolution.
    """

    channels: int
    size: int
    classes: int
    features: int = 64
    width: int = 32

    def __post_init__(self) -> None:
        super().__init__()
        w, half = self.width, self.size // 2
        self.body = nn.Sequential(
            nn.Conv2d(self.channels, w, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(w, 2 * w, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(2 * w, 2 * w, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(2 * w * half * half, self.features),
            nn.SiLU(),
        )
        self.scores = nn.Linear(self.features, self.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, classes) of images (B, channels, size, size)."""
        return self.scores(self.body(x))

    @torch.no_grad()
    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (B,) and features (B, features), in evaluation mode and float32."""
        if self.training:
            raise RuntimeError("a classifier reads in eval mode: call .eval() first")
        features = torch.cat([self.body(part) for part in x.split(1024)])
        return self.scores(features).argmax(1), features


def classifier_loss(model: Classifier, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross entropy by row, with labels smoothed by 0.05; "x" and "label" of the batch."""
    return nn.functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none", label_smoothing=0.05)
