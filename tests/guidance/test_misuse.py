"""Misuse: one clear error, where the mistake is made."""

import pytest
import torch

import suffuse as sf
from suffuse import guidance, samplers, schedules

from .worlds import MODEL, NEG, POS, READER, WEAK

X = sf.noise((6, 1, 8, 8), seed=3)


def _point(mean):
    return sf.oracle.Gaussian([mean], 1.0)


def _latents():
    model = MODEL.given(label=1)
    model.codec = sf.nets.LatentCodec(sf.nets.Autoencoder(1, 1, 4, (1,)))
    return model


MISUSE = {
    "negative prompt without guidance": (
        lambda: guidance.guide(POS, MODEL.given(label=2), 1.0),
        "the negative is told 'label', but w=1 is off",
    ),
    "negative prompt without cfg_zero": (
        lambda: guidance.cfg_zero(POS, MODEL.given(label=2), 1.0),
        "w=1 is off",
    ),
    "w": (lambda: guidance.guide(POS, NEG, float("nan")), "w must be a finite number, got nan"),
    "w of a row": (lambda: guidance.apg(POS, NEG, X[:, 0, 0, 0] / 0), "w must be a finite number"),
    "negative prompt without apg": (lambda: guidance.apg(POS, MODEL.given(label=2), 1.0), "w=1 is off"),
    "two schedules": (lambda: guidance.guide(POS, MODEL.on(schedules.Cosine()), 2.0), r"bring them together with \.on"),
    "a classifier of another schedule": (
        lambda: guidance.classifier(MODEL.on(schedules.Cosine()), READER, 1),
        r"bring them together with \.on",
    ),
    "autoguidance across schedules": (
        lambda: guidance.cfg_zero(POS, WEAK.on(schedules.VP()), 2.0),
        r"different schedules.*\.on\(schedule\)",
    ),
    "interval outside": (
        lambda: guidance.guide(POS, NEG, 2.0, between=(-0.1, 0.5)),
        r"0 <= low <= high <= 1, got \(-0",
    ),
    "interval above one": (lambda: guidance.interval(POS, NEG, between=(0.1, 1.5)), r"0 <= low <= high <= 1"),
    "logsnr the wrong way round": (lambda: guidance.guide(POS, NEG, 2.0, logsnr=(3, -3)), "low <= high"),
    "an interval twice": (
        lambda: guidance.interval(POS, NEG, between=(0.1, 0.2), logsnr=(-1, 1)),
        "give the interval once",
    ),
    "phi": (lambda: guidance.rescale(guidance.guide(POS, NEG, 2.0), 1.2), r"share in \[0, 1\], got 1.2"),
    "rescale of what is not guided": (lambda: guidance.rescale(POS, 0.5)(X, 0.5), "hand it a guided denoiser"),
    "percentile": (lambda: guidance.threshold(POS, 0.0), r"in \(0, 100\], got 0"),
    "limit": (lambda: guidance.threshold(POS, limit=-1.0), "must be positive, got -1"),
    "apg": (lambda: guidance.apg(POS, NEG, 2.0, norm=0.0), "positive norm"),
    "zero_init": (lambda: guidance.cfg_zero(POS, NEG, 2.0, zero_init=1.0), r"in \[0, 1\), got 1"),
    "nothing to compose": (lambda: guidance.compose(POS), "at least one"),
    "an infinite weight": (lambda: guidance.compose(NEG, (POS, float("inf"))), "weight 0 must be a finite number"),
    "s": (lambda: guidance.classifier(POS, READER, 1, float("nan")), "s must be a finite number"),
    "a label beyond": (lambda: guidance.classifier(POS, READER, 11)(X, 0.5), "labels 0 to 9, got"),
    "labels of other rows": (
        lambda: guidance.classifier(MODEL, READER, sf.noise((3,), 0).long())(X, 0.5),
        "labels must be one, or one for each of 6 rows, got 3",
    ),
    "the spread of one number": (
        lambda: guidance.rescale(guidance.guide(_point(0.0), _point(1.0), 2.0))(X[:, 0, 0, :1], 0.5),
        r"one of shape \(1,\) has none",
    ),
    "latents that end at 1": (lambda: guidance.threshold(_latents()), "latents do not end at 1"),
    **{
        f"scales of other rows, {name}": (
            lambda make=make: make(torch.tensor([1.0, 2.0, 3.0]))(X, 0.5),
            r"one for each of 6 rows, got shape \(3,\)",
        )
        for name, make in {
            "guide": lambda w: guidance.guide(POS, NEG, w),
            "within": lambda w: guidance.guide(POS, NEG, w, between=(0.2, 0.8)),
            "apg": lambda w: guidance.apg(POS, NEG, w),
            "cfg_zero": lambda w: guidance.cfg_zero(POS, NEG, w),
            "compose": lambda w: guidance.compose(NEG, (POS, w)),
            "classifier": lambda w: guidance.classifier(POS, READER, 1, w),
        }.items()
    },
    "perturbing what is guided": (lambda: guidance.pag(guidance.guide(POS, NEG, 2.0), 2.0), "before any guidance"),
    "a convention": (lambda: guidance.scale(1.0, of="diffusers"), "one of 'imagen', 'ho', got 'diffusers'"),
    "particles": (
        lambda: guidance.steer(MODEL, len, X, particles=4, steps=3, seed=0),
        "multiple of particles=4, got 6",
    ),
    "a sampler without noise": (
        lambda: guidance.steer(MODEL, len, X, particles=3, sampler=samplers.heun, steps=3, seed=0),
        "would never part",
    ),
    "a reward of one number": (
        lambda: guidance.steer(MODEL, lambda x0: x0.mean(), X, particles=3, steps=3, seed=0),
        "6 finite numbers, one a row",
    ),
    "a reward that is no number": (
        lambda: guidance.steer(MODEL, lambda x0: x0.flatten(1).sum(1) / 0, X, particles=3, steps=3, seed=0),
        "6 finite numbers, one a row",
    ),
    "steering what keeps state": (
        lambda: guidance.steer(guidance.apg(POS, NEG, 2.0), len, X, particles=3, steps=3, seed=0),
        "keeps something",
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_one_clear_error(name):
    act, words = MISUSE[name]
    with pytest.raises((ValueError, TypeError), match=words):
        act()
