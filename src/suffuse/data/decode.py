"""One picture file to a square of uint8, and what was odd about it.

Left out, with the reason: empty, not a picture, cut short or damaged, too small, too large, values of unknown range.
Taken in, but named: turned as its EXIF says, CMYK, 16 bits, transparent, animated, grey in a set of colours, enlarged.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["SUFFIXES", "Findings", "picture"]

SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".jp2"]
)
"""Names of pictures end in one of these."""


@dataclass
class Findings:
    """What was found in the files of a set: how many were taken in, and the names of all that were odd.

    Attributes:
        kept: how many pictures were taken in; of a stream, in all epochs.
        left_out, odd: names of files by reason, each once; the odd ones are in.
    """

    kept: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)
    _noted: set[tuple[str, str]] = field(default_factory=set, repr=False, compare=False)

    def note(self, name: str, kept: bool, reasons: tuple[str, ...]) -> None:
        """Count one file."""
        self.kept += kept
        for reason in reasons:
            if (reason, name) in self._noted:
                continue
            self._noted.add((reason, name))
            (self.odd if kept else self.left_out).setdefault(reason, []).append(name)

    def to_json(self) -> dict[str, Any]:
        """{"kept", "left_out": {reason: [names]}, "odd": {reason: [names]}}."""
        return {"kept": self.kept, "left_out": self.left_out, "odd": self.odd}

    def __str__(self) -> str:
        lines = [f"{self.kept:,} pictures"]
        for what, found in (("left out", self.left_out), ("taken in", self.odd)):
            for reason, names in sorted(found.items(), key=lambda item: -len(item[1])):
                some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                lines.append(f"  {what}: {len(names):,} {reason} ({some})")
        return "\n".join(lines)


def picture(
    raw: bytes, size: int, *, channels: int = 3, crop: str = "centre", smallest: int | None = None
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Decode a picture file, scale it with antialiasing (Lanczos) and cut it square.

    Args:
        raw: the file. size: of the square in pixels.
        channels: 3 for colour, 1 for grey, 4 for colour and opacity. With 1 and 3, what is transparent becomes white.
        crop: "centre" keeps the middle of the longer side, "squeeze" keeps all and changes the aspect, "pad" keeps
            all and fills with white.
        smallest: a side of fewer pixels is too small; by default a quarter of `size`.
    Returns:
        (channels, size, size) uint8, or None where it cannot be used, and what was odd, or why.
    Raises:
        ValueError: size, channels or crop out of range.
        RuntimeError: Pillow was told to take truncated files for whole ones.
    """
    if size < 1 or channels not in (1, 3, 4) or crop not in ("centre", "squeeze", "pad"):
        raise ValueError(
            "size must be at least 1, channels 1, 3 or 4 and crop 'centre', 'squeeze' or 'pad', "
            f"got {size}, {channels} and {crop!r}"
        )
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, which takes files cut short for whole ones: set it to False"
        )
    if not raw:
        return None, ("empty",)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(raw))
            if min(image.size) < max(1, size // 4 if smallest is None else smallest):
                return None, ("too small",)
            odd = _odd(image, raw, channels)
            image.load()
            if ImageOps.exif_transpose(image) is not image and image.getexif().get(0x0112, 1) != 1:
                odd.append("turned as its EXIF says")
            image = _eight_bits(ImageOps.exif_transpose(image))
            if image is None:
                return None, ("of values of unknown range",)
            if min(image.size) < size:
                odd.append("enlarged")
            square = _square(_flat(image, mode), size, crop)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            return None, ("too large",)
        except UnidentifiedImageError:
            return None, ("not a picture",)
        except Exception:  # a damaged file may raise anything, from struct.error to zlib's own
            return None, ("cut short or damaged",)
    pixels = np.asarray(square)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)), tuple(odd)


def _odd(image: Any, raw: bytes, channels: int) -> list[str]:
    odd = []
    if image.mode == "CMYK":
        odd.append("CMYK")
    if image.mode.startswith("I;16") or (raw[:8] == b"\x89PNG\r\n\x1a\n" and raw[24:25] == b"\x10"):
        odd.append("16 bits")
    if channels < 4 and image.has_transparency_data:
        odd.append("transparent, now on white")
    if getattr(image, "n_frames", 1) > 1:
        odd.append("animated, first frame")
    if channels > 1 and image.mode in ("1", "L", "LA", "I;16", "I;16B", "I;16L"):
        odd.append("grey")
    return odd


def _eight_bits(image: Any) -> Any:
    """The same picture in 8 bits a channel; None for 32-bit integers and floats, whose white nobody knows."""
    from PIL import Image

    if image.mode in ("I", "F"):
        return None
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    return image


def _flat(image: Any, mode: str) -> Any:
    from PIL import Image

    if mode == "RGBA" or not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)


def _square(image: Any, size: int, crop: str) -> Any:
    from PIL import Image, ImageOps

    if crop == "squeeze":
        return image.resize((size, size), Image.Resampling.LANCZOS)
    fit = ImageOps.fit if crop == "centre" else ImageOps.pad
    options = (
        {} if crop == "centre" else {"color": {"L": 255, "RGB": (255,) * 3, "RGBA": (255,) * 3 + (0,)}[image.mode]}
    )
    return fit(image, (size, size), Image.Resampling.LANCZOS, **options)
