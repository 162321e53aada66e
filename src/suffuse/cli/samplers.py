"""`suffuse samplers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from suffuse.cli.say import say

__all__ = ["Samplers"]


@dataclass(frozen=True)
class Samplers:
    """List every sampler: order, calls a step, whether it draws noise, and its paper."""

    plot: Path | None = None
    """draw the deterministic ones' error against network evaluations into this picture instead"""

    def __call__(self) -> None:
        """Print the table, or draw."""
        from rich.console import Console
        from rich.table import Table

        from suffuse.samplers import rules

        if self.plot is not None:
            from suffuse.recipes.precision import plot

            found = plot(self.plot)
            say(f"{self.plot}: {len(found)} samplers on a mixture whose flow is known")
            return

        table = Table("name", "options", "order", "calls a step", "noise", "paper", box=None, pad_edge=False)
        for name, rule in rules().items():
            options = ", ".join(f"{k}={v}" for k, v in rule.options.items())
            table.add_row(
                name, options, f"{rule.order:g}", str(rule.stages), "yes" if rule.stochastic else "no", rule.paper
            )
        Console().print(table)
