"""Small trained weights that ship with the package; `ledger.md` says where each comes from."""

from __future__ import annotations

from pathlib import Path

__all__ = ["has", "path"]


def has(name: str | Path) -> bool:
    """Whether there is a file or folder of that name, which is one word."""
    return Path(name).name == str(name) and (Path(__file__).parent / name).exists()


def path(name: str) -> Path:
    """Where a file of the zoo is.

    Raises:
        FileNotFoundError: there is none of that name; lists those there are.
    """
    folder = Path(__file__).parent
    if not has(name):
        known = sorted(p.name for p in folder.iterdir() if not p.name.startswith(("_", ".")) and p.suffix != ".md")
        raise FileNotFoundError(f"the zoo has no {name!r}; it has {', '.join(known) or 'nothing yet'}")
    return folder / name
