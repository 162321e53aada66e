"""Losses: plain functions `(model, batch) -> (B,)`."""

from suffuse.losses.denoising import denoising, logit_normal, stratified, uniform

__all__ = ["denoising", "logit_normal", "stratified", "uniform"]
