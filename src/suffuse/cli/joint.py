"""`suffuse panorama`, `anagram`, `texture`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from suffuse.cli.say import say

__all__ = ["Anagram", "Panorama", "Texture"]

Labels = Annotated[tuple[int, ...], arg(metavar="INT...")]
Prompts = Annotated[tuple[str, ...], arg(metavar="TEXT...")]


def _opened(path: Path, command: str, why: str | None = None) -> tuple[Any, Any, tuple[int, int], int]:
    """A run, its model, the size of its pictures, and how many pixels a side a latent stands for.

    Args:
        why: latents will not do; None: they will.
    """
    from suffuse.recipes.run import Run

    made = Run.open(path)
    if len(made.shape) != 3:
        raise ValueError(f"{command} needs a model of pictures (C, H, W), {made.path} makes data of shape {made.shape}")
    model = made.model()
    if model.codec is not None and why:
        raise ValueError(f"{command} needs a model of pixels, and {made.path} samples latents: {why}")
    factor: int = 1 if model.codec is None else model.codec.factor  # type: ignore[attr-defined]
    return made, model, (factor * made.shape[1], factor * made.shape[2]), factor


def _sampler(made: Any) -> Any:
    """The recipe's own."""
    from suffuse import samplers

    name = made.settings.get("sampler")
    return None if name is None else samplers.rules()[name]()


def _decoded(codec: Any, z: Any, views: Any, shown: Any, chunk: int) -> Any:
    """Pictures (n, C, *canvas) of latents, window by window, as the codec knows them, and averaged."""
    import torch

    from suffuse import joint

    small, large = joint.Views(views), joint.Views(shown, chunk=chunk)

    def ask(i: int, j: int) -> Any:
        y = small.part(i, j)(z)
        return codec.decode(y.flatten(0, 1)).clamp(-1, 1).unflatten(0, y.shape[:2])

    with torch.no_grad():
        return large.solve(large.pull(ask, z.new_empty(len(z), codec.net.channels, *shown.canvas)))


@dataclass(frozen=True)
class Panorama:
    """A wide picture from a model of small ones, by windows that agree where they overlap."""

    run: Positional[Path]
    """a run's folder, or the name of a model that ships"""
    width: int = 256
    """of the panorama in pixels, at least the model's own; like height and stride whole latents, if it samples those"""
    height: int | None = None
    """in pixels; by default the model's own"""
    wrap: bool = False
    """360 degrees: the right edge goes on at the left one"""
    stride: int | None = None
    """pixels from window to window; by default a quarter of a window"""
    label: Labels = ()
    """class; several follow each other from left to right"""
    prompt: Prompts = ()
    """what it shows, of a model that is told text; several follow each other from left to right"""
    w: float | None = None
    """guidance scale; 1 is off"""
    push: float = 0.0
    """how hard windows are pushed towards the look of the middle one (SyncDiffusion); 0 is off"""
    n: int = 1
    """how many panoramas"""
    steps: int = 30
    """grid intervals"""
    chunk: int = 16
    """windows looked at together: memory grows with them, not with the width"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("panorama.png")
    """picture to write, its recipe inside"""

    def __call__(self) -> None:
        """Sample."""
        from suffuse import joint, noise, pictures, sample, samplers
        from suffuse.operators import Crops
        from suffuse.recipes.draw import stamp, told

        made, one, size, factor = _opened(self.run, "panorama")
        canvas = (size[0] if self.height is None else self.height, self.width)
        stride = max(1, min(size) // 4 // factor) * factor if self.stride is None else self.stride
        shown = Crops(size, stride, canvas, wrap=self.wrap)
        for name, value in (("height", canvas[0]), ("width", canvas[1]), ("stride", stride)):
            if value % factor:
                raise ValueError(f"--{name} must be a multiple of {factor}, the pixels of one latent, got {value}")
        small = (canvas[0] // factor, canvas[1] // factor)
        views = shown if factor == 1 else Crops(made.shape[1:], stride // factor, small, wrap=self.wrap)
        count = len(views.corners)
        if self.n < 1:
            raise ValueError(f"--n must be at least 1, got {self.n}")

        def along(said: tuple[Any, ...]) -> tuple[Any, ...]:
            """What each window is told, by where its middle lies."""
            if len(said) < 2:
                return said
            middle = [(left + size[1] / 2) % canvas[1] / canvas[1] for _, left in shown.corners]
            return tuple(said[int(at * len(said))] for at in middle)

        rows = self.n * count
        denoiser, guidance = told(made, rows, along(self.label), along(self.prompt), self.w, model=one)

        def look(a: Any, b: Any) -> Any:
            return joint.look(a, b) if one.codec is None else joint.look(one.codec.decode(a), one.codec.decode(b))

        if self.push:
            anchor = min(range(count), key=lambda k: abs(shown.corners[k][1] + size[1] / 2 - canvas[1] / 2))
            model = joint.syncdiffusion(denoiser, views, look, w=self.push, anchor=anchor, chunk=self.chunk)
        else:
            model = joint.average(denoiser, views, chunk=self.chunk)
        how = {"steps": self.steps, "sampler": samplers.ddim if self.push else _sampler(made), "seed": self.seed}
        x = sample(model, noise((self.n, made.shape[0], *small), self.seed), **how)
        if one.codec is not None:
            x = _decoded(one.codec, x, views, shown, self.chunk)
        recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        about = recipe | guidance | {"made by": "suffuse panorama"} | stamp(made)
        pictures.save_png(pictures.grid(x, 1, scale=max(1, 96 // canvas[0])), self.out, about)
        say(f"{self.out}: {self.n} x {canvas[0]} x {canvas[1]} pixels from {count} windows each, recipe inside")


@dataclass(frozen=True)
class Anagram:
    """One picture that shows several things: each label or prompt in a view of its own."""

    run: Positional[Path]
    """a run's folder, or the name of a model that ships"""
    views: Annotated[tuple[str, ...], arg(metavar="VIEW...")] = ("identity", "rotate180")
    """identity, rotate90, rotate180, rotate270, flip, mirror, negative, inner90, inner180, jigsaw, shuffle, skew"""
    label: Labels = ()
    """class seen in each view"""
    prompt: Prompts = ()
    """what is seen in each view, of a model that is told text"""
    w: float | None = None
    """guidance scale; 1 is off"""
    n: int = 8
    """how many pictures"""
    steps: int = 30
    """grid intervals"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("anagram.png")
    """picture to write: a row for each view; its recipe inside"""

    def __call__(self) -> None:
        """Sample."""
        import torch

        from suffuse import joint, noise, pictures, sample
        from suffuse.recipes.draw import stamp, told

        why = "a turned latent is no latent of the turned picture"
        made, model, size, _ = _opened(self.run, "anagram", why)
        views = [joint.view(name, size) for name in self.views]
        for name, said in (("label", self.label), ("prompt", self.prompt)):
            if said and len(said) != len(views):
                raise ValueError(f"--{name} has {len(said)} values for {len(views)} views: give each view its own")
        if not self.label and not self.prompt:
            raise ValueError("an anagram is told what to show in each view: give --label or --prompt")
        if self.n < 1:
            raise ValueError(f"--n must be at least 1, got {self.n}")
        denoiser, guidance = told(made, self.n * len(views), self.label, self.prompt, self.w, model=model)
        how = {"steps": self.steps, "sampler": _sampler(made), "seed": self.seed}
        x = sample(joint.anagram(denoiser, views), noise((self.n, *made.shape), self.seed), **how)
        recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        about = recipe | guidance | {"made by": "suffuse anagram"} | stamp(made)
        rows = torch.cat([view(x) for view in views])
        pictures.save_png(pictures.grid(rows, self.n, scale=max(1, 48 // size[1])), self.out, about)
        say(f"{self.out}: {self.n} pictures, a row for each of {', '.join(self.views)}")


@dataclass(frozen=True)
class Texture:
    """Paint a mesh: a texture that looks as asked from all sides, from a model of small squares."""

    mesh: Positional[str]
    """an OBJ file with texture coordinates, an .npz with the same arrays, or "cube" """
    run: Path = Path("runs/frieze")
    """a run of a model of pictures"""
    label: Labels = ()
    """class it shows"""
    prompt: Prompts = ()
    """what it shows, of a model that is told text"""
    w: float | None = None
    """guidance scale; 1 is off"""
    views: int = 8
    """cameras around the mesh"""
    size: int = 64
    """of each camera's picture in pixels, at least the model's own"""
    texture: int = 128
    """side of the texture in texels"""
    steps: int = 20
    """grid intervals"""
    chunk: int = 16
    """windows looked at together"""
    seed: int = 0
    """of the noise"""
    out: Path = Path("painted")
    """folder for mesh.obj, mesh.mtl, mesh.png and turntable.gif"""

    def __call__(self) -> None:
        """Paint."""
        from suffuse import fields, pictures
        from suffuse.recipes.draw import stamp, told
        from suffuse.recipes.paint import paint, windows_of

        if self.run == Path("runs/frieze") and not self.run.is_dir():
            raise ValueError(f"no run at {self.run}: make it with `suffuse train frieze`, or name another with --run")
        made, model, size, _ = _opened(self.run, "texture", "what a camera sees of a latent is no latent")
        if made.shape[0] != 3 or size[0] != size[1]:
            raise ValueError(f"texture needs a model of square colour pictures, {made.path} makes {made.shape}")
        if len(self.label) > 1 or len(self.prompt) > 1:
            raise ValueError("a texture is told one thing: give one --label or --prompt")
        mesh = fields.read_mesh(self.mesh).centred()
        seen = windows_of(mesh, fields.orbit(self.views), window=size[0], size=self.size, texture=self.texture)
        denoiser, guidance = told(made, seen.n or 1, self.label, self.prompt, self.w, model=model)
        image, share = paint(denoiser, seen, made.shape, steps=self.steps, chunk=self.chunk, seed=self.seed)
        fields.write_mesh(mesh, image, self.out)
        recipe = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self).items()}
        about = recipe | guidance | {"made by": "suffuse texture"} | stamp(made)
        frames = [fields.shade(mesh, image, camera, 128) for camera in fields.orbit(16, elevations=(15.0,))]
        frames = [pictures.grid(frame[None], 1, gap=0) for frame in frames]
        pictures.animation(frames, self.out / "turntable.gif", about, milliseconds=120, hold=120)
        say(f"{self.out}: mesh.obj, mesh.mtl, mesh.png, turntable.gif; {100 * share:.0f} % of the texture was seen")
