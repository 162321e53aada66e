"""Pictures as they come: whole, odd and broken ones, made with Pillow."""

import io

import numpy as np
from PIL import Image


def gradient(width=48, height=32):
    """Red rises to the right, green downwards, blue is 64."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 64)], -1).astype(np.uint8)
    )


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunks(png):
    """The chunks of a PNG file, as (start, type, length)."""
    at, found = 8, []
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        found.append((at, png[at + 4 : at + 8], length))
        at += 12 + length
    return found


def deep_png():
    """A 16-bit PNG in grey: a ramp from 0 to 65535 in 48 columns."""
    ramp = np.tile(np.linspace(0, 65535, 48).astype(np.uint16), (32, 1))
    return encoded(Image.fromarray(ramp))


def flipped_bit():
    """A PNG whose pixel data was damaged in the middle."""
    raw = bytearray(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8))))
    start, _, length = next(c for c in chunks(bytes(raw)) if c[1] == b"IDAT")
    for k in range(20):
        raw[start + 8 + length // 2 + k] ^= 0xFF
    return bytes(raw)


def turned():
    """The gradient lying on its side, with EXIF saying how to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    return encoded(gradient().rotate(90, expand=True), "JPEG", quality=95, exif=exif)


def folder_of_everything(root):
    """One file of each kind; returns what should be found, by name."""
    jpeg = encoded(gradient(), "JPEG", quality=95)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    kinds = {
        "good.png": (encoded(gradient()), None, ()),
        "good.jpg": (jpeg, None, ()),
        "truncated.jpg": (jpeg[: len(jpeg) * 2 // 3], "cut short or damaged", ()),
        "truncated.png": (encoded(gradient())[:-60], "cut short or damaged", ()),
        "damaged.png": (flipped_bit(), "cut short or damaged", ()),
        "empty.png": (b"", "empty", ()),
        "one.png": (encoded(Image.new("RGB", (1, 1))), "too small", ()),
        "text.png": (b"this is a text, and no picture at all\n" * 10, "not a picture", ()),
        "head.jpg": (jpeg[:3], "not a picture", ()),
        "float.tif": (encoded(Image.new("F", (40, 40), 0.5), "TIFF"), "of values of unknown range", ()),
        "cmyk.jpg": (encoded(gradient().convert("CMYK"), "JPEG", quality=95), None, ("CMYK",)),
        "deep.png": (deep_png(), None, ("16 bits", "grey")),
        "turned.jpg": (turned(), None, ("turned as its EXIF says",)),
        "clear.png": (encoded(clear), None, ("transparent, now on white",)),
        "moving.gif": (
            encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            None,
            ("animated, first frame",),
        ),
        "grey.png": (encoded(gradient().convert("L")), None, ("grey",)),
        "small.png": (encoded(gradient(20, 20)), None, ("enlarged",)),
    }
    root.mkdir(parents=True, exist_ok=True)
    for name, (raw, _, _) in kinds.items():
        (root / name).write_bytes(raw)
    return {name: (reason, odd) for name, (_, reason, odd) in kinds.items()}
