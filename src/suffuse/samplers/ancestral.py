"""Single-step samplers that mix the predicted noise with fresh noise: DDPM, DDIM and multistep consistency.

x_b = alpha_b x0 + sqrt(sigma_b^2 - d^2) eps + d z
"""

from __future__ import annotations

from math import sqrt

from suffuse.samplers.rule import Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["consistency", "ddim", "ddpm"]


@sampler(order=1)
def ddim(step: Step, eta: float = 0.0) -> Symbol:
    """x_b = alpha_b x0 + sqrt(sigma_b^2 - d^2) eps + d z,  d = eta * std of the DDPM posterior.

    Args:
        eta: 0 is the deterministic flow, 1 is DDPM.
    Song et al. 2021 (DDIM), eq. 12.
    """
    a, b, d = step.a, step.b, eta * step.posterior_std
    if not 0 <= d <= b.sigma:
        raise ValueError(f"eta must be at least 0 and add no more noise than there is, got {eta:g}; 1 is DDPM")
    return b.alpha * a.x0 + sqrt(b.sigma**2 - d**2) * a.eps + d * step.z


@sampler(order=1)
def ddpm(step: Step, variance: str = "small") -> Symbol:
    """x_b = posterior mean of q(x_b | x_a, x0) + d z,  d^2 = beta_a sigma_b^2 / sigma_a^2.

    Args:
        variance: "small" is that d, exact for data that is one point; "large" is d^2 = beta_a, exact in the limit of
            unit Gaussian data, and no noise in a last step to t = 0.
    Ho et al. 2020, eq. 7 and section 3.2.
    """
    a, b = step.a, step.b
    ratio = a.alpha / b.alpha
    beta = a.sigma**2 - (ratio * b.sigma) ** 2
    on_x = ratio * b.sigma**2 / a.sigma**2
    mean = b.alpha * beta / a.sigma**2 * a.x0 + on_x * a.x
    if variance == "small":
        return mean + step.posterior_std * step.z
    if variance != "large":
        raise ValueError(f"variance must be 'small' or 'large', got {variance!r}")
    d = sqrt(beta) if b.sigma > 0 else 0.0
    step.inflate(carry=on_x**2, add=d**2 - step.posterior_std**2)
    return mean + d * step.z


@sampler(order=1)
def consistency(step: Step) -> Symbol:
    """x_b = alpha_b x0 + sigma_b z: jump to the data, and noise it again.

    Song et al. 2023 (consistency models), algorithm 1.
    """
    return step.b.alpha * step.a.x0 + step.b.sigma * step.z
