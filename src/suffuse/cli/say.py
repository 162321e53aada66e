"""What commands print."""

from __future__ import annotations

from typing import Any

__all__ = ["say", "summary"]


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def summary(title: str, measured: dict[str, Any]) -> None:
    """A line for each measurement: {"title": {"value", "n", "interval"}}."""
    if title:
        say(f"\n{title}")
    for name, m in measured.items():
        low, high = m["interval"]
        say(f"{name:>30}  {m['value']:.3f}   [{low:.3f}, {high:.3f}]  n={m['n']}")
