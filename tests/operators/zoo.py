"""Every operator the laws run over, each with the shape of the data it is tried on. Exporting one enrols it."""

import torch

from suffuse import operators as ops

SIZE, ODD = (8, 12), (9, 7)


def _kernel():
    return torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _table():
    g = torch.Generator().manual_seed(2)
    return torch.randn(5, 9 * 7, generator=g, dtype=torch.float64)


LINEAR = {  # name -> [(operator, data shape), ...]
    "Blur": [(ops.Blur(_kernel(), p), (2, *s)) for p in ("circular", "zero") for s in (SIZE, ODD, (2, 3))],
    "Composition": [
        (ops.Mask.random(ODD, keep=0.4, seed=1) @ ops.Flip(-2), (2, *ODD)),
        (ops.Turn(1) @ ops.GaussianBlur(0.7), (1, *ODD)),
        (ops.Downsample(2, SIZE) @ ops.GaussianBlur(0.6, "zero"), (1, *SIZE)),
    ],
    "Crop": [(ops.Crop((1, 2, 4, 3), ODD), (2, *ODD))],
    "Crops": [
        (ops.Crops((4, 5), (3, 4), ODD), (3, *ODD)),
        (ops.Crops(4, (4, 2), SIZE, wrap=True), (1, *SIZE)),
        (ops.Crops((8, 5), (8, 3), SIZE, wrap=True), (2, *SIZE)),
    ],
    "Downsample": [
        (ops.Downsample(k, s, filter=f), (2, *s))
        for k, s in ((2, SIZE), (3, ODD))
        for f in ("bicubic", "bilinear", "area")
    ],
    "Flip": [(ops.Flip(), (2, *ODD)), (ops.Flip((-1, -2)), (1, *SIZE))],
    "GaussianBlur": [(ops.GaussianBlur(0.6, p), (2, *s)) for p in ("circular", "zero") for s in (SIZE, ODD)],
    "Greyscale": [(ops.Greyscale(), (3, *ODD))],
    "Identity": [(ops.Identity(), (2, *ODD))],
    "Mask": [
        (ops.Mask.box(ODD, (2, 1, 3, 4)), (2, *ODD)),
        (ops.Mask.random(SIZE, keep=0.3, seed=0), (1, *SIZE)),
        (ops.Mask.text((16, 33), "ab"), (1, 16, 33)),
    ],
    "MaskedFourier": [(ops.MaskedFourier.columns(s, keep=0.5, seed=3), (2, *s)) for s in (SIZE, ODD)],
    "Matrix": [(ops.Matrix(_table(), (1, *ODD)), (1, *ODD))],
    "MotionBlur": [(ops.MotionBlur(4, 30, p), (2, *s)) for p in ("circular", "zero") for s in (SIZE, ODD)],
    "Permutation": [(ops.Permutation.random(ODD, seed=1), (2, *ODD)), (ops.Permutation([2, 0, 1], (3,)), (3,))],
    "Radon": [(ops.Radon(5, ODD), (2, *ODD)), (ops.Radon((0, 45), SIZE), (1, *SIZE))],
    "Rotation": [(ops.Rotation(33, s), (2, *s)) for s in (SIZE, ODD)],
    "Scale": [(ops.Scale(-2.0), (2, *ODD))],
    "Separable": [(ops.Separable(_table()[:3, :9], _table()[:, 20:27]), (2, *ODD))],
    "Sparse": [(ops.Sparse(torch.tensor([0, 1, 1]), torch.tensor([3, 5, 5]), torch.ones(3), ODD, (2,)), (2, *ODD))],
    "Stack": [
        (ops.stack(ops.Flip(), ops.Identity(), ops.Flip(-2)), (1, *ODD)),
        (ops.stack(ops.Crop((0, 0, 4, 3), ODD), ops.Greyscale(), shape=(3, *ODD)), (3, *ODD)),
    ],
    "Turn": [(ops.Turn(k), (2, *ODD)) for k in (0, 1, 2, 3)],
    "from_function": [(ops.from_function(lambda x: x.cumsum(-1)[..., ::2], (2, *ODD)), (2, *ODD))],
    "inner_rotation": [
        (ops.inner_rotation(1, (9, 9)), (2, 9, 9)),
        (ops.inner_rotation(2, (8, 8), radius=3), (1, 8, 8)),
    ],
    "jigsaw": [(ops.jigsaw(3, (9, 9), 1), (1, 9, 9)), (ops.jigsaw(2, SIZE, 1), (2, *SIZE))],
    "negative": [(ops.negative(), (2, *ODD))],
    "patch_shuffle": [(ops.patch_shuffle(4, SIZE, 1), (2, *SIZE))],
    "skew": [(ops.skew(0.7, ODD), (2, *ODD))],
}
NOT_LINEAR = {
    "Affine": (ops.negative(0, 1), (2, *ODD)),
    "Decode": (ops.Decode(type("Doubling", (), {"decode": lambda self, z: 2 * z.tanh()})()), (2, *ODD)),
    "Function": (ops.from_function(torch.sin, linear=False), (2, *ODD)),
    "HighDynamicRange": (ops.HighDynamicRange(), (2, *ODD)),
    "PhaseRetrieval": (ops.PhaseRetrieval(), (2, *ODD)),
    "Quantise": (ops.Quantise(5), (2, *ODD)),
}
OTHER = {  # exported, and no operator
    "GaussianNoise",
    "LinearOperator",
    "Operator",
    "PoissonNoise",
    "Spectrum",
    "conjugate_gradients",
    "matrix",
    "stack",
}
HARD = {  # linear with singular values far apart, on pictures as large as one has them
    "GaussianBlur(1)": (ops.GaussianBlur(1.0, "zero"), (1, 32, 32)),
    "GaussianBlur(2)": (ops.GaussianBlur(2.0, "zero"), (1, 32, 40)),
    "MotionBlur(9)": (ops.MotionBlur(9, 30, "zero"), (2, 20, 24)),
}
CASES = {f"{name} {n}": case for name, cases in LINEAR.items() for n, case in enumerate(cases)}
