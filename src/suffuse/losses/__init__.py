"""Losses: plain functions `(model, batch) -> (B,)`, with the times, weights and couplings they are given."""

from suffuse.losses import couplings, distillation, fewstep, times, weights
from suffuse.losses.alignment import Alignment, Likeness
from suffuse.losses.autoencoder import Adversarial, Perceptual, autoencoding, kl_divergence
from suffuse.losses.couplings import immiscible, independent, optimal_transport
from suffuse.losses.denoising import denoising
from suffuse.losses.distillation import VSD, csd, dds, pds, sdi, sds, vsd
from suffuse.losses.gan import GAN
from suffuse.losses.imitation import imitation
from suffuse.losses.noisy_classification import noisy_classification
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
    "GAN",
    "VSD",
    "Adversarial",
    "Alignment",
    "Likeness",
    "Perceptual",
    "Uncertain",
    "autoencoding",
    "cosmap",
    "couplings",
    "csd",
    "dds",
    "denoising",
    "denoising_score",
    "distillation",
    "fewstep",
    "hybrid",
    "imitation",
    "immiscible",
    "implicit_score",
    "independent",
    "kl_divergence",
    "log_normal",
    "logit_normal",
    "mode",
    "noisy_classification",
    "optimal_transport",
    "pds",
    "sdi",
    "sds",
    "shifted",
    "sliced_score",
    "stratified",
    "times",
    "uniform",
    "uniform_logsnr",
    "vsd",
    "weights",
]
