"""What trains an autoencoder: reconstruction, the prior's pull on its latents, two judges of sharpness, and meaning.

loss = |x - x'| + kl KL(N(mean, var) || N(0, 1)) + perceptual + adversarial - aligned,      x' = decode(mean + std eps)

Reconstruction and KL are sums over one picture, over its number of values: with squared error, kl = 1 and a unit
variance of 1/2 this is the evidence bound. Kingma & Welling 2013, eq. 10; Rombach et al. 2022, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Adversarial", "Perceptual", "autoencoding", "kl_divergence"]


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) summed over all but rows, (B,), in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def autoencoding(
    model: Any,
    batch: Mapping[str, Tensor],
    *,
    kl: float = 1e-6,
    square: float = 0.0,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    adversarial: Adversarial | None = None,
    aligned: Callable[[Tensor, Tensor], Tensor] | None = None,
    perturb: float = 0.0,
) -> Tensor:
    """Loss of an autoencoder, by row.

    Args:
        model: with `encode(x) -> (mean, logvar)` and `decode(z)`, such as `nets.Autoencoder`.
        batch: "x" (B, ...) in [-1, 1].
        kl: weight of the prior: 1e-6 for a codec, 1 for a model to sample from.
        square: share of squared error in the reconstruction; the rest is absolute error.
        perceptual: (x, x') -> (B,), such as `Perceptual`. adversarial: judges x' and learns to.
        aligned: (z, x) -> (B,), taken off the loss, such as a weight times `Likeness`: latents that say what is in a
            picture are easier to generate (Yao et al. 2025, VA-VAE).
        perturb: what is decoded has further noise, of a standard deviation |N(0, perturb^2)| drawn for each row, in
            units of the latents as the encoder gives them: the decoder learns to mend what a denoiser gets wrong
            (Zheng et al. 2025, RAE).
    Returns:
        (B,). Randomness is torch's own: `fit` seeds it by (seed, step).
    """
    x = batch["x"]
    mean, logvar = model.encode(x)
    var = logvar.exp()
    if perturb:
        var = var + (perturb * torch.randn(len(x), *(1,) * (var.ndim - 1), device=x.device)).square()
    z = mean + var.sqrt() * torch.randn_like(mean)
    made = model.decode(z)
    gap = (x - made).flatten(1)
    loss = (
        (1 - square) * gap.abs().mean(1)
        + square * gap.square().mean(1)
        + kl * kl_divergence(mean, logvar) / x[0].numel()
    )
    if perceptual is not None:
        loss = loss + perceptual(x, made)
    if aligned is not None:
        loss = loss - aligned(z, x)
    return loss if adversarial is None else loss + adversarial(x, made)


class Perceptual(nn.Module):
    """weight times the distance in a network's features, each place's channels scaled to length 1.

    The form of LPIPS (Zhang et al. 2018, eq. 1) with all weights 1; `metrics.perceptual` measures the same.

    Args:
        net: (B, C, H, W) -> anything; not trained. layers: of it, whose outputs (B, c, h, w) are compared.
        weight: of the sum over layers.
    """

    def __init__(self, net: nn.Module, layers: list[nn.Module], weight: float = 1.0) -> None:
        super().__init__()
        object.__setattr__(self, "net", net)  # not among the parameters that are trained
        self.layers, self.weight = tuple(layers), weight

    def forward(self, x: Tensor, made: Tensor) -> Tensor:
        """(B,)."""
        seen: list[Tensor] = []

        def keep(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen.append(output)

        hooks = [layer.register_forward_hook(keep) for layer in self.layers]
        try:
            self.net(torch.cat([x, made]))  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
        total = x.new_zeros(len(x))
        for features in seen:
            unit = features / (features.square().sum(1, keepdim=True) + 1e-12).sqrt()
            a, b = unit.chunk(2)
            total = total + (a - b).square().sum(1).flatten(1).mean(1)
        return self.weight * total


class Adversarial(nn.Module):
    """A judge of patches, learning in the same steps as what it judges: a hinge loss on either side.

    weight (- D*(x'))  for the decoder, D* held fixed;    max(0, 1 - D(x)) + max(0, 1 + D(x'*))  for the judge, x' fixed

    Args:
        channels: of the pictures. width: channels of the first layer. layers: halvings, a patch of about 4, 10, 22, 46
            pixels for 1, 2, 3, 4.
        weight: of the decoder's side.

    Isola et al. 2017 (patches); Esser et al. 2021 (VQGAN) for its place here.
    """

    def __init__(self, channels: int, width: int = 32, layers: int = 3, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight
        sizes = [channels, *(width * min(2**i, 4) for i in range(layers))]
        parts: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            parts += [nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.judge = nn.Sequential(*parts, nn.Conv2d(sizes[-1], 1, 3, 1, 1))

    def scores(self, x: Tensor) -> Tensor:
        """One for each patch, (B, P): high is real."""
        return self.judge(x).flatten(1)

    def forward(self, x: Tensor, made: Tensor) -> Tensor:
        """Both sides' losses, (B,): each reaches only the parameters it is for."""
        fixed = {name: p.detach() for name, p in self.judge.named_parameters()}
        fooled = torch.func.functional_call(self.judge, fixed, (made,)).flatten(1)
        real, fake = self.scores(x), self.scores(made.detach())
        return (F.relu(1 - real) + F.relu(1 + fake)).mean(1) - self.weight * fooled.mean(1)
