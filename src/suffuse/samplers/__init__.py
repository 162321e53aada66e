"""Samplers: rules that a grid turns into plans, and the loop that runs them."""

from suffuse.samplers.adams import adams, deis, lms, noise_adams, plms, sa_solver, trig_adams
from suffuse.samplers.adaptive import adaptive
from suffuse.samplers.ancestral import consistency, ddim, ddpm
from suffuse.samplers.bound import variational_bound
from suffuse.samplers.budget import budget
from suffuse.samplers.cfgpp import cfgpp
from suffuse.samplers.encode import decode_pair, encode, encode_pair
from suffuse.samplers.exponential import dpmpp, dpmpp_2s, dpmpp_multistep_sde, dpmpp_sde
from suffuse.samplers.fitted import fit
from suffuse.samplers.inversion import bdia, edict
from suffuse.samplers.learned import ddpm_learned
from suffuse.samplers.likelihood import bits_per_dim, log_prob
from suffuse.samplers.picard import picard
from suffuse.samplers.plan import Plan, PlanError
from suffuse.samplers.res import res, res_multistep
from suffuse.samplers.rule import Rule, sampler
from suffuse.samplers.run import default, plan_for, run, sample
from suffuse.samplers.singlestep import dpm_solver, seeds
from suffuse.samplers.stages import heun, kutta3, midpoint, rk4
from suffuse.samplers.stochastic import churn, euler_maruyama, langevin
from suffuse.samplers.two_time import endpoint
from suffuse.samplers.unipc import unipc
from suffuse.samplers.walk import RunStep, combine

__all__ = [
    "Plan",
    "PlanError",
    "Rule",
    "RunStep",
    "adams",
    "adaptive",
    "bdia",
    "bits_per_dim",
    "budget",
    "cfgpp",
    "churn",
    "combine",
    "consistency",
    "ddim",
    "ddpm",
    "ddpm_learned",
    "decode_pair",
    "default",
    "deis",
    "dpm_solver",
    "dpmpp",
    "dpmpp_2s",
    "dpmpp_multistep_sde",
    "dpmpp_sde",
    "edict",
    "encode",
    "encode_pair",
    "endpoint",
    "euler_maruyama",
    "fit",
    "heun",
    "kutta3",
    "langevin",
    "lms",
    "log_prob",
    "midpoint",
    "noise_adams",
    "picard",
    "plan_for",
    "plms",
    "res",
    "res_multistep",
    "rk4",
    "rules",
    "run",
    "sa_solver",
    "sample",
    "sampler",
    "seeds",
    "trig_adams",
    "unipc",
    "variational_bound",
]


def rules() -> dict[str, Rule]:
    """Every sampler exported here, by name; the laws run over all of them."""
    return {name: value for name in __all__ if isinstance(value := globals()[name], Rule)}
