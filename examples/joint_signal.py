"""A long signal from a prior of short ones: python examples/joint_signal.py

The prior knows 32 samples of a wave that wanders (a Gaussian process, so its denoiser is exact). Windows of 256 samples
agree where they overlap. Averaging believes each window as if it were alone; a collage takes the shared part off again
(DiffCollage), and keeps the wander of the whole.
"""

import argparse
from pathlib import Path

import torch

import suffuse as sf
from suffuse import joint

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=30)
args = parser.parse_args()

LONG, SHORT, STRIDE, LENGTH = 256, 32, 16, 8.0


def process(n: int) -> torch.Tensor:
    """Covariance exp(-|i - j| / 8): a Markov process, so windows given their overlap are independent."""
    at = torch.arange(n)
    return torch.exp(-(at[:, None] - at).abs() / LENGTH)


prior = sf.oracle.Gaussian(torch.zeros(1, SHORT), process(SHORT))
overlap = sf.oracle.Gaussian(torch.zeros(1, SHORT - STRIDE), process(SHORT - STRIDE))
windows = joint.Segments(SHORT, STRIDE, LONG)
noise = sf.noise((256, 1, LONG), seed=0)
found = {
    "averaged": sf.sample(joint.average(prior, windows), noise, steps=args.steps),
    "collage": sf.sample(joint.collage(prior, windows, overlap=overlap), noise, steps=args.steps),
}
lines = []
for lag in (1, 4, 8, 16, 32):
    said = {name: (x[..., :-lag] * x[..., lag:]).mean().item() for name, x in found.items()}
    told = ", ".join(f"{name} {value:.2f}" for name, value in said.items())
    lines.append(f"covariance at lag {lag}: wanted {process(LONG)[0, lag]:.2f}, {told}")
Path("signal.txt").write_text("\n".join(lines) + "\n")
print("\n".join(lines))
