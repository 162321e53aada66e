"""Denoising diffusion null-space model: what was measured comes from y, the rest from the model.

x0' = pinv(A) y + (x0 - pinv(A) A x0)

With a mask, known pixels are y to the last bit wherever a sampler ends on x0 (`ddim`, `ddpm`, `dpmpp`). In latents,

z0' = E(pinv(A) y + (D(z0) - pinv(A) A D(z0)))      with a codec's decoder D and the mean E of its encoder

Approximated: y is taken without noise (see `ddnm_plus`), and x0 outside the range of A.T is not told about y except
through the state: at few steps the two parts do not match, which time travel (`grids.time_travel`) mends. In latents
y is met as closely as the codec gives pictures back.

Wang et al. 2023 (DDNM), section 3; Rout et al. 2023 (PSLD), whose gluing term pulls z0 to this z0'.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.codec import Codec
from suffuse.denoise import Composed, call, denoiser
from suffuse.inverse.measured import checked, residual
from suffuse.operators import Decode, LinearOperator, Operator
from suffuse.operators.algebra import Chain
from suffuse.parameterize import Prediction

__all__ = ["ddnm"]


def ddnm(model: Any, A: Operator, y: Tensor) -> Composed:
    """What the model believes of x0, corrected to satisfy y = A x0.

    Args:
        model: the prior, a denoiser.
        A: linear; or linear @ `Decode(codec)`, for a model of latents. y: (1 or B, ...) the measurement, without noise.
    Raises:
        TypeError: A is neither. ValueError: y has a NaN; or, when run, y does not fit A.
    """
    codec = None
    if isinstance(A, Chain) and isinstance(A.B, Decode):
        A, codec = A.A, A.B.codec
    A, y = checked("ddnm", A, y)
    extra = {"A": A, "codec": codec}
    return denoiser(_ddnm, parts=[model], name="ddnm", settings={"A": A}, rows={"y": y}, extra=extra)


def _ddnm(x: Tensor, t: Any, to: Any, model: Any, *, y: Tensor, A: LinearOperator, codec: Codec | None) -> Prediction:
    x0 = call(model, x, t, to).x0
    x0 = x0 if codec is None else codec.decode(x0)
    residual(A, x0, y)  # whether they fit
    x0 = A.pinv(y.to(x0)) + (x0 - A.pinv(A(x0)))
    return Prediction(x, *model.schedule(t, like=x), x0=x0 if codec is None else codec.encode(x0, None))
