"""Numbers that say what they are: value, n, interval, and what they were measured with."""

from suffuse.metrics import shapes
from suffuse.metrics.classifier import Classifier, classifier_loss
from suffuse.metrics.clip import Towers, clip, clip_choice, clip_retrieval, clip_score
from suffuse.metrics.clouds import chamfer, cloud_coverage, jsd, minimum_matching
from suffuse.metrics.crps import crps
from suffuse.metrics.features import Features, features
from suffuse.metrics.frechet import frechet, frechet_ratio
from suffuse.metrics.kernel import energy_distance, kid, mmd
from suffuse.metrics.likeness import lpips, perceptual, psnr, ssim
from suffuse.metrics.manifold import coverage, density, memorised, precision, recall
from suffuse.metrics.result import Measured, mean, proportion
from suffuse.metrics.score import classifier_score
from suffuse.metrics.transport import sliced_wasserstein, wasserstein

__all__ = [
    "Classifier",
    "Features",
    "Measured",
    "Towers",
    "chamfer",
    "classifier_loss",
    "classifier_score",
    "clip",
    "clip_choice",
    "clip_retrieval",
    "clip_score",
    "cloud_coverage",
    "coverage",
    "crps",
    "density",
    "energy_distance",
    "features",
    "frechet",
    "frechet_ratio",
    "jsd",
    "kid",
    "lpips",
    "mean",
    "memorised",
    "minimum_matching",
    "mmd",
    "perceptual",
    "precision",
    "proportion",
    "psnr",
    "recall",
    "shapes",
    "sliced_wasserstein",
    "ssim",
    "wasserstein",
]
