"""Samplers: rules that a grid turns into plans, and the loop that runs them."""

from suffuse.samplers.ancestral import consistency, ddim, ddpm
from suffuse.samplers.exponential import dpmpp
from suffuse.samplers.plan import Plan, PlanError, RunStep, combine
from suffuse.samplers.rule import Rule, sampler
from suffuse.samplers.run import default, plan_for, run, sample
from suffuse.samplers.stages import heun

__all__ = [
    "Plan",
    "PlanError",
    "Rule",
    "RunStep",
    "combine",
    "consistency",
    "ddim",
    "ddpm",
    "default",
    "dpmpp",
    "heun",
    "plan_for",
    "rules",
    "run",
    "sample",
    "sampler",
]


def rules() -> dict[str, Rule]:
    """Every sampler exported here, by name; the laws run over all of them."""
    return {name: value for name in __all__ if isinstance(value := globals()[name], Rule)}
