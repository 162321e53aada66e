"""Every method as one call, and the worlds it is tried on."""

import torch

import suffuse as sf
from suffuse import inverse, operators, oracle, samplers

SHAPE = (1, 3, 4)


def gaussian(seed=0, shape=SHAPE, isotropic=False):
    """N(m, C) with a dense C, or with C = 0.49 I."""
    d = int(torch.Size(shape).numel())
    m = 0.5 * sf.noise((d,), seed=seed, dtype=torch.float64).reshape(shape)
    if isotropic:
        return oracle.Gaussian(m, 0.49)
    L = sf.noise((d, d), seed=seed + 1, dtype=torch.float64) * (0.6 / d**0.5)
    return oracle.Gaussian(m, L @ L.T + 0.05 * torch.eye(d, dtype=torch.float64))


def mixture(shape=SHAPE):
    d = int(torch.Size(shape).numel())
    means = sf.noise((3, d), seed=5, dtype=torch.float64).reshape(3, *shape)
    return oracle.Mixture([0.5, 0.3, 0.2], means, 0.15)


MASK = operators.Mask.box(SHAPE[1:], (0, 1, 2, 2))
WINDOW = operators.Downsample(2, SHAPE[1:], filter="area") @ operators.Flip(-2)


def turned(z):
    """A codec's decoder and encoder that lose nothing: pictures are latents the other way round."""
    return z.flip(-1)


def _as_denoiser(method, sampler, **options):
    def act(model, A, y, sigma, noise, seed, first):
        given = (sigma,) if method in (inverse.pigdm, inverse.mmps, inverse.diffpir) else ()
        made = method(model, A, y, *given, **options)
        return sf.sample(made, noise, sampler=sampler, steps=8, seed=seed, first=first)

    return act


def _as_sampler(method):
    return lambda model, A, y, sigma, noise, seed, first: sf.sample(
        model, noise, sampler=method(A, y, sigma), steps=8, seed=seed, first=first
    )


METHODS = {
    "pigdm": _as_denoiser(inverse.pigdm, None),
    "mmps": _as_denoiser(inverse.mmps, None),
    "dps": _as_denoiser(inverse.dps, samplers.ddim(eta=1.0), zeta=0.3),
    "mcg": _as_denoiser(inverse.mcg, samplers.ddim(eta=1.0), zeta=0.3),
    "ddnm": _as_denoiser(inverse.ddnm, samplers.ddpm),
    "diffpir": _as_denoiser(inverse.diffpir, samplers.ddim(eta=0.5)),
    "flowchef": _as_denoiser(inverse.flowchef, samplers.ddim),
    "psld": lambda model, A, y, sigma, noise, seed, first: sf.sample(
        inverse.psld(model, A, y, turned, turned, zeta=0.3),
        noise,
        sampler=samplers.ddim(eta=1.0),
        steps=8,
        seed=seed,
        first=first,
    ),
    "resample": lambda model, A, y, sigma, noise, seed, first: inverse.resample(
        model, A, y, noise, sigma, steps=8, every=2, inner=10, seed=seed, first=first
    ),
    "flowdps": lambda model, A, y, sigma, noise, seed, first: inverse.flowdps(
        model, A, y, noise, steps=8, seed=seed, first=first
    ),
    "blended": lambda model, A, y, sigma, noise, seed, first: inverse.blended(
        model, A, y, noise, steps=8, seed=seed, first=first
    ),
    "ddrm": _as_sampler(inverse.ddrm),
    "ddnm_plus": _as_sampler(inverse.ddnm_plus),
    "repaint": lambda model, A, y, sigma, noise, seed, first: inverse.repaint(
        model, A, y, noise, steps=6, jump=3, repeats=2, seed=seed, first=first
    ),
    "tds": lambda model, A, y, sigma, noise, seed, first: inverse.tds(
        model, A, y, noise, sigma, steps=8, seed=seed, first=first
    ),
    "daps": lambda model, A, y, sigma, noise, seed, first: inverse.daps(
        model, A, y, noise, sigma, steps=4, inner=3, seed=seed, first=first
    ),
    "pnpdm": lambda model, A, y, sigma, noise, seed, first: inverse.pnpdm(
        model, A, y, noise, sigma, rounds=4, inner=3, seed=seed, first=first
    ),
    "reddiff": lambda model, A, y, sigma, noise, seed, first: inverse.reddiff(
        model, A, y, noise, steps=8, seed=seed, first=first
    ),
}
