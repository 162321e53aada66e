"""The command line: `suffuse demo`, `train`, `distil`, `sample`, `edit`, `evaluate`, `info`, `doctor`, and more."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from suffuse.cli.distil import Distil
from suffuse.cli.doctor import Doctor
from suffuse.cli.edit import Edit
from suffuse.cli.joint import Anagram, Panorama, Texture
from suffuse.cli.personalise import Personalise
from suffuse.cli.pictures import Reproduce, Sample
from suffuse.cli.restore import Fill, Restore
from suffuse.cli.runs import Demo, Evaluate, Info
from suffuse.cli.samplers import Samplers
from suffuse.cli.train import Train

__all__ = ["main"]

Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Distil, subcommand("distil")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Edit, subcommand("edit")]
    | Annotated[Restore, subcommand("restore")]
    | Annotated[Fill, subcommand("fill")]
    | Annotated[Personalise, subcommand("personalise")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Panorama, subcommand("panorama")]
    | Annotated[Anagram, subcommand("anagram")]
    | Annotated[Texture, subcommand("texture")]
    | Annotated[Samplers, subcommand("samplers")]
    | Annotated[Reproduce, subcommand("reproduce")]
)


def main(args: list[str] | None = None) -> None:
    """Run one command; what the user got wrong is one sentence and exit code 2."""
    command: Any = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="suffuse",
        description=__doc__,
        args=args,
        config=(OmitArgPrefixes, OmitSubcommandPrefixes),
    )
    try:
        command()
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"suffuse: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        from suffuse.training import DiskFullError

        if not isinstance(error, DiskFullError):
            raise
        print(f"suffuse: {error}", file=sys.stderr)
        sys.exit(2)
