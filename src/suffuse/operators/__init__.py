"""Operators: measurements y = A(x) of an inverse problem, and views of a canonical space.

A @ B composes, stack(A, B) measures twice, A.T is the transpose and A.pinv the pseudo-inverse:
<A x, y> = <x, A.T y> and A pinv(A) A = A, for every linear operator here.
"""

from suffuse.operators.algebra import Affine, Composition, Stack, stack
from suffuse.operators.base import LinearOperator, Matrix, Operator, Spectrum, conjugate_gradients, matrix
from suffuse.operators.blur import Blur, GaussianBlur, MotionBlur
from suffuse.operators.fourier import MaskedFourier
from suffuse.operators.function import Function, from_function
from suffuse.operators.noise import GaussianNoise, PoissonNoise
from suffuse.operators.nonlinear import Decode, HighDynamicRange, PhaseRetrieval, Quantise
from suffuse.operators.pointwise import Greyscale, Identity, Mask, Scale, negative
from suffuse.operators.rays import Radon, Rotation, Sparse
from suffuse.operators.rearrange import Flip, Permutation, Turn, inner_rotation, jigsaw, patch_shuffle, skew
from suffuse.operators.resize import Downsample, Separable
from suffuse.operators.windows import Crop, Crops

__all__ = [
    "Affine",
    "Blur",
    "Composition",
    "Crop",
    "Crops",
    "Decode",
    "Downsample",
    "Flip",
    "Function",
    "GaussianBlur",
    "GaussianNoise",
    "Greyscale",
    "HighDynamicRange",
    "Identity",
    "LinearOperator",
    "Mask",
    "MaskedFourier",
    "Matrix",
    "MotionBlur",
    "Operator",
    "Permutation",
    "PhaseRetrieval",
    "PoissonNoise",
    "Quantise",
    "Radon",
    "Rotation",
    "Scale",
    "Separable",
    "Sparse",
    "Spectrum",
    "Stack",
    "Turn",
    "conjugate_gradients",
    "from_function",
    "inner_rotation",
    "jigsaw",
    "matrix",
    "negative",
    "patch_shuffle",
    "skew",
    "stack",
]
