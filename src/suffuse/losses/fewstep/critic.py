"""The critic of DMD2: what the second model sees in a noised sample says whether it was data.

logit(x_t) = w2 silu(w1 mean_n h_n),    h the cells (B, N, C) that a module inside the second model's network puts out

Its own training, softplus(-logit) on data and softplus(logit) on samples, ends at log p_data(x_t) - log p_own(x_t); it
reaches the second model's weights too, so that their features tell the two apart.

Yin et al. 2024 (DMD2), section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from suffuse.denoise import Denoiser

__all__ = ["Critic"]


class Critic(nn.Module):
    """A critic of noised samples for `DMD`, a small head on the second model.

    Args:
        fake: the second model. batch: any of its training data, {"x": ..., conditions}; only shapes are looked at.
        at: the module that puts out h, by its path; by default the deepest one: the last of `middle`, as a U-Net has,
            or the middle one of `blocks`.
    Raises:
        ValueError: the network has no such module.
    """

    def __init__(self, fake: Denoiser, batch: Mapping[str, Tensor], *, at: str | None = None) -> None:
        super().__init__()
        self.net: nn.Module = fake.net  # type: ignore[assignment]
        self.at, self._fake = _deepest(self.net) if at is None else at, (fake,)
        with torch.no_grad():
            told = {name: value[:1] for name, value in batch.items() if name not in ("x", "eps")}
            width = self.cells(batch["x"][:1], torch.full((1,), 0.5, device=batch["x"].device), **told).shape[-1]
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 1))
        self.head.to(batch["x"].device)

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """Logits (B,) of x_t (B, ...) at t (B,) being noised data."""
        return self.head(self.cells(x, t, **conditions).mean(1))[:, 0]

    def cells(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        """h, (B, N, C)."""
        seen: list[Any] = []
        try:
            handle = self.net.get_submodule(self.at).register_forward_hook(lambda _module, _x, h: seen.append(h))
        except AttributeError:
            raise ValueError(f"the network {type(self.net).__name__} has no module {self.at!r} to look at") from None
        try:
            self._fake[0].given(**conditions)(x, t)
        finally:
            handle.remove()
        h = seen[0]
        return h[:, None] if h.ndim == 2 else h if h.ndim == 3 else h.flatten(2).transpose(1, 2)


def _deepest(net: nn.Module) -> str:
    for name, last in (("middle", True), ("blocks", False)):
        found = getattr(net, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return f"{name}.{len(found) - 1 if last else len(found) // 2}"
    raise ValueError(f"{type(net).__name__} has neither `middle` nor `blocks`: say which module to look at by at=")
