"""A codec in files, as a model is: `codec.json` says what to build, `codec.safetensors` holds the weights."""

from __future__ import annotations

from pathlib import Path

from suffuse import __version__
from suffuse.nets import LatentCodec
from suffuse.training.described import FORMAT, build, describe, fill
from suffuse.training.files import ModelFileError, read_json, read_tensors, whole_folder, write_json, write_tensors
from suffuse.training.parallel import peers

__all__ = ["load_codec", "save_codec", "write_codec"]


def save_codec(codec: LatentCodec, path: str | Path) -> None:
    """Write a codec to a folder, whole or not at all; of several processes the first does, and the others wait."""
    team = peers()
    if team.first:
        with whole_folder(Path(path)) as folder:
            write_codec(folder, codec)
    team.word(None)


def write_codec(folder: Path, codec: LatentCodec) -> None:
    """Write the two files of a codec into an existing folder."""
    about = {"format": FORMAT, "suffuse": __version__, "net": describe(codec.net)}
    write_json(folder / "codec.json", about | {"scale": codec.scale, "shift": codec.shift})
    write_tensors(folder / "codec.safetensors", codec.net.state_dict())


def load_codec(path: str | Path) -> LatentCodec:
    """Read a codec from a folder, in eval mode and without gradients.

    Raises:
        ModelFileError: as for `load`.
    """
    path = Path(path)
    if not (path / "codec.json").exists():
        raise ModelFileError(f"{path} holds no codec.json: it is not the folder of a codec")
    about = read_json(path / "codec.json")
    if about.get("format") != FORMAT:
        raise ModelFileError(f"{path}/codec.json has format {about.get('format')!r}, this suffuse reads {FORMAT}")
    if missing := {"net", "scale", "shift"} - about.keys():
        raise ModelFileError(f"{path}/codec.json does not say {', '.join(sorted(missing))}")
    net = build(about["net"])
    fill(net, read_tensors(path / "codec.safetensors"), path / "codec.safetensors")
    return LatentCodec(net.eval().requires_grad_(False), about["scale"], about["shift"])  # type: ignore[arg-type]
