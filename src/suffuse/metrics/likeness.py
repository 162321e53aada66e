"""How alike pairs of pictures are: PSNR, SSIM, LPIPS where torchvision is, and a distance in any network's features.

PSNR = 10 log10(4 / mean squared error)                                          pictures in [-1, 1]: range 2, squared
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from suffuse.metrics.result import Measured, mean

__all__ = ["lpips", "perceptual", "psnr", "ssim"]


def _pictures(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape or a.ndim != 4 or len(a) < 2:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{what} needs two equal (N, C, H, W) with N at least 2, got {shapes}")
    low, high = min(a.min().item(), b.min().item()), max(a.max().item(), b.max().item())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"{what} needs pictures in [-1, 1], got {low:g} to {high:g}: clamp or scale them")


def psnr(a: Tensor, b: Tensor) -> Measured:
    """Peak signal to noise ratio of pairs of pictures (N, C, H, W) in [-1, 1], in decibels; infinite where equal.

    Raises:
        ValueError: shapes that differ, fewer than 2 pairs, or values out of range.
    """
    _pictures(a, b, "psnr")
    error = (a.detach().double() - b.detach().double()).square().flatten(1).mean(1)
    said = {"convention": "dB, range 2, mean over pictures of each one's ratio"}
    return mean(10 * (4 / error).log10(), "PSNR of pairs", **said)


def ssim(a: Tensor, b: Tensor) -> Measured:
    """Structural similarity (Wang et al. 2004) of pairs of pictures (N, C, H, W) in [-1, 1], by torchmetrics.

    Raises:
        ValueError: shapes that differ, fewer than 2 pairs, values out of range, or a side below the window's 11 pixels.
        ModuleNotFoundError: torchmetrics is not installed.
    """
    _pictures(a, b, "ssim")
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"ssim looks through a window of 11 pixels, the pictures have {tuple(a.shape[-2:])}")
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("ssim needs torchmetrics: pip install 'suffuse[metrics]'") from None
    options = {"data_range": 2.0, "gaussian_kernel": True, "sigma": 1.5, "reduction": "none", "return_full_image": True}
    _, whole = structural_similarity_index_measure(a.detach().double(), b.detach().double(), **options)
    each = whole[..., 5:-5, 5:-5].flatten(1).mean(1)  # their own mean takes in windows over mirrored borders
    said = {"convention": "Gaussian window of 11 pixels, sigma 1.5, whole windows only, range 2, mean over channels"}
    return mean(each, "SSIM of pairs, by torchmetrics", **said)


def lpips(a: Tensor, b: Tensor, *, net: str = "alex") -> Measured:
    """LPIPS (Zhang et al. 2018) of pairs of colour pictures (N, 3, H, W) in [-1, 1], by torchmetrics.

    Args:
        a, b: as above. net: "alex", "vgg" or "squeeze", whose weights torchvision must have.
    Raises:
        ValueError: shapes that differ, fewer than 2 pairs, values out of range.
        ModuleNotFoundError: torchvision or torchmetrics is not installed; `perceptual` needs neither.
    """
    _pictures(a, b, "lpips")
    from importlib.util import find_spec

    if find_spec("torchvision") is None or find_spec("torchmetrics") is None:
        raise ModuleNotFoundError(
            "lpips needs torchvision with its weights, and torchmetrics; perceptual(a, b, net, features=...) measures "
            "in a network of yours instead, and is not LPIPS"
        )
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance

    with torch.no_grad():
        each = torch.stack([distance(x[None], y[None], net_type=net) for x, y in zip(a, b, strict=True)])  # type: ignore[arg-type]
    return mean(each, "LPIPS of pairs, by torchmetrics", features=net, convention="learned weights, [-1, 1]")


def perceptual(
    a: Tensor, b: Tensor, net: nn.Module, *, features: str, layers: Sequence[nn.Module] | None = None
) -> Measured:
    """Distance of pairs of pictures (N, C, H, W) in [-1, 1] in a network's features. It is not LPIPS.

    d = sum over layers of the mean over places of |f_a / |f_a| - f_b / |f_b||^2, each place's channels scaled to length
    1: the form of LPIPS (Zhang et al. 2018, eq. 1) with all weights 1.

    Args:
        a, b: as above. net: called with the pictures, in eval mode. features: its name, for the record.
        layers: modules of it whose outputs (N, C, h, w) are compared; by default every activation.
    Raises:
        ValueError: shapes that differ, fewer than 2 pairs, values out of range, or no layer gives (N, C, h, w).
        RuntimeError: net is in training mode.
    """
    _pictures(a, b, "perceptual")
    if net.training:
        raise RuntimeError("a perceptual distance needs the network in eval mode: call .eval() first")
    kinds = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Tanh)
    layers = [m for m in net.modules() if isinstance(m, kinds)] if layers is None else layers
    each = []
    with torch.no_grad(), _outputs(layers) as seen:
        for x, y in zip(a.split(256), b.split(256), strict=True):
            seen.clear()
            net(torch.cat((x, y)))
            maps = [f.double() for f in seen if f.ndim == 4]
            if not maps:
                raise ValueError(f"none of {len(layers)} layers gives features (N, C, h, w): name others by layers=")
            each.append(sum(_differ(*f.chunk(2)) for f in maps))
    how = f"distance of pairs in {len(layers)} layers, channels scaled to length 1, all weights 1"
    return mean(torch.cat(each), how, features=features, convention="not LPIPS")


def _differ(a: Tensor, b: Tensor) -> Tensor:
    unit: Callable[[Tensor], Tensor] = lambda f: f / (f.square().sum(1, keepdim=True) + 1e-20).sqrt()  # noqa: E731
    return (unit(a) - unit(b)).square().sum(1).mean((1, 2))


@contextlib.contextmanager
def _outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
