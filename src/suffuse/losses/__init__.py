"""Losses: plain functions `(model, batch) -> (B,)`, with the times, weights and couplings they are given."""

from suffuse.losses import couplings, fewstep, times, weights
from suffuse.losses.couplings import immiscible, independent, optimal_transport
from suffuse.losses.denoising import denoising
from suffuse.losses.score import denoising_score, implicit_score, sliced_score
from suffuse.losses.times import (
    cosmap,
    log_normal,
    logit_normal,
    mode,
    shifted,
    stratified,
    uniform,
    uniform_logsnr,
)
from suffuse.losses.uncertainty import Uncertain
from suffuse.losses.variance import hybrid

__all__ = [
    "Uncertain",
    "cosmap",
    "couplings",
    "denoising",
    "denoising_score",
    "fewstep",
    "hybrid",
    "immiscible",
    "implicit_score",
    "independent",
    "log_normal",
    "logit_normal",
    "mode",
    "optimal_transport",
    "shifted",
    "sliced_score",
    "stratified",
    "times",
    "uniform",
    "uniform_logsnr",
    "weights",
]
