"""`suffuse restore`, `fill`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from suffuse.cli.say import say

__all__ = ["Fill", "Restore"]


@dataclass(frozen=True)
class Restore:
    """Undo what was done to a picture: blur, lost pixels, low resolution, noise and more, by a diffusion prior."""

    image: Positional[Path]
    """any picture; its middle square is scaled to the size. Unless --measured, it is measured here and then restored"""
    operator: str
    """what was done: identity, blur:SIGMA, motion:LENGTH,ANGLE, downsample:K, grey, random:KEEP, box:TOP,LEFT,HEIGHT,WIDTH, text:WORD, radon:ANGLES, fourier:KEEP, hdr:GAIN, phase:OVERSAMPLE; "downsample:2 @ blur:1" blurs first"""  # noqa: E501
    model: Path = Path("shapes")
    """a run's folder, or the name of a model that ships"""
    method: (
        Literal[
            "pigdm",
            "mmps",
            "dps",
            "mcg",
            "ddnm",
            "diffpir",
            "flowchef",
            "ddrm",
            "ddnm_plus",
            "repaint",
            "daps",
            "pnpdm",
            "reddiff",
            "flowdps",
            "resample",
        ]
        | None
    ) = None
    """how; docs/inverse.md compares them. By default mmps, and resample for a model of latents"""
    sigma: float = 0.05
    """standard deviation of the measurement's noise; pictures run from -1 to 1"""
    measured: bool = False
    """the picture is the measurement: restore it as it is"""
    size: int | None = None
    """side of the picture; by default the model's own, a larger one is restored in overlapping windows"""
    label: int | None = None
    """class it shows, of a model that may be told one"""
    prompt: str | None = None
    """what it shows, of a model that may be told text"""
    w: float | None = None
    """guidance scale; 1 is off"""
    n: int = 4
    """samples: how they differ is how much the measurement leaves open"""
    nfe: int = 100
    """evaluations for each"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("restored.png")
    """before, measurement and samples side by side; the first sample alone goes to NAME.after.png"""

    def __call__(self) -> None:
        """Restore."""
        from suffuse.recipes.restore import restore

        options = {k: v for k, v in vars(self).items() if k not in ("image", "model", "out")}
        found = restore(self.model, self.image, self.out, **options)
        how = f" by {self.method}" if self.method else ""
        say(f"{self.out}: {'' if self.measured else 'before, '}measurement and {self.n} samples{how}")
        for name, title in (("psnr_measured", "PSNR, least squares"), ("psnr", "PSNR, samples")):
            if name in found:
                say(f"{title:>30}  {found[name]:.2f} dB")


@dataclass(frozen=True)
class Fill:
    """Paint a part of a picture anew, or beyond its edges; every other pixel stays as it is."""

    image: Positional[Path]
    """any picture; its middle square is scaled to the model's size"""
    model: Path = Path("shapes")
    """a run's folder, or the name of a model that ships"""
    mask: Path | None = None
    """a picture, white where to paint; or"""
    box: Annotated[tuple[int, ...], arg(metavar="INT")] = ()
    """top, left, height and width of what to paint, in pixels of the model's size; or"""
    grow: int = 0
    """pixels to paint beyond each edge"""
    method: Literal["repaint", "ddnm", "blended"] | None = None
    """how; by default repaint, and ddnm for a model of latents"""
    label: int | None = None
    """class it shall show, of a model that may be told one"""
    prompt: str | None = None
    """what it shall show, of a model that may be told text"""
    w: float | None = None
    """guidance scale; 1 is off"""
    n: int = 4
    """samples"""
    nfe: int = 100
    """evaluations for each"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("filled.png")
    """before, what is known and samples side by side; the first sample alone goes to NAME.after.png"""

    def __call__(self) -> None:
        """Fill."""
        from suffuse.recipes.restore import fill

        fill(
            self.model,
            self.image,
            self.out,
            **{k: v for k, v in vars(self).items() if k not in ("image", "model", "out")},
        )
        say(f"{self.out}: {self.n} samples{f' by {self.method}' if self.method else ''}; what was known is as it was")
