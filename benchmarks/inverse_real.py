"""Photographs restored in patches: `SUFFUSE_DATA=... python benchmarks/inverse_real.py` fits a prior and uses it.

The prior is a mixture of Gaussians of 8 x 8 grey patches (Zoran & Weiss 2011), fitted by expectation maximization to
patches of all but four of the 13 Kodak pictures in SUFFUSE_DATA/test_images; the four that are restored gave it none.
As a mixture it denoises exactly at every noise level (`sf.oracle.Mixture`), and `joint.average` makes it a denoiser of
whole pictures: no network is involved. It is kept in --prior and not fitted again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import suffuse as sf
from inverse import section
from suffuse import joint, metrics, operators, pictures
from suffuse.recipes import restore

PATCH, STRIDE, KEPT_OUT = 8, 4, (2, 5, 8, 11)
"""Side of the patches; pixels from window to window; numbers of the pictures that are restored."""
PROBLEMS = ("blur:1.5", "downsample:2", "random:0.3", "text:suffuse")
METHODS = ("pigdm", "mmps", "ddrm", "diffpir", "ddnm_plus")
SIGMA = 0.05


def photographs() -> Tensor:
    """The Kodak pictures, (13, 1, 256, 256) in [-1, 1]: grey, and squeezed to squares by their source."""
    if "SUFFUSE_DATA" not in os.environ:
        raise SystemExit("set SUFFUSE_DATA to the folder that holds test_images/test_images_256.npz")
    with np.load(Path(os.environ["SUFFUSE_DATA"]) / "test_images" / "test_images_256.npz", allow_pickle=False) as file:
        return torch.from_numpy(file["kodak_gray"])[:, None].float() / 127.5 - 1


def prior(file: Path, *, components: int = 32, patches: int = 20_000) -> sf.oracle.Mixture:
    """The mixture, fitted now or read from the file."""
    from safetensors.torch import load_file, save_file

    if not file.exists():
        from sklearn.mixture import GaussianMixture

        rng, real = np.random.default_rng(0), photographs()
        mine = [i for i in range(len(real)) if i not in KEPT_OUT]
        cut = []
        for _ in range(patches):
            i, top, left = rng.choice(mine), *rng.integers(0, 256 - PATCH + 1, 2)
            cut.append(real[i, 0, top : top + PATCH, left : left + PATCH].flatten())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 40 rounds are enough, converged or not
            made = GaussianMixture(components, reg_covar=1e-4, max_iter=40, random_state=0)
            made.fit(torch.stack(cut).numpy())
        file.parent.mkdir(parents=True, exist_ok=True)
        parts = {"weights": made.weights_, "means": made.means_, "covs": made.covariances_}
        save_file({k: torch.from_numpy(v).float() for k, v in parts.items()}, file)
    held = load_file(file)
    means = held["means"].reshape(-1, 1, PATCH, PATCH)
    return sf.oracle.Mixture(held["weights"], means, held["covs"])


def main() -> None:
    """Fit, restore, and write the section "real" of docs/inverse.md and its pictures."""
    parse = argparse.ArgumentParser()
    parse.add_argument("--prior", type=Path, default=Path("runs/inverse/patches.safetensors"))
    parse.add_argument("--size", type=int, default=128, help="side of the middle of each picture that is restored")
    parse.add_argument("--nfe", type=int, default=50)
    parse.add_argument("--methods", nargs="+", default=METHODS)
    parse.add_argument("--out", type=Path, default=Path("docs/inverse.md"))
    given = parse.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    world = prior(given.prior)
    fitted, side, edge = time.process_time() - began, given.size, (256 - given.size) // 2
    x = photographs()[list(KEPT_OUT), :, edge : edge + side, edge : edge + side]
    model = joint.average(world, operators.Crops(PATCH, STRIDE, (side, side)))
    z, rows = sf.noise(tuple(x.shape), seed=7), {}
    for text in PROBLEMS:
        A: Any = restore.operator(text, (side, side))
        y = operators.GaussianNoise(SIGMA)(A(x), seed=11)
        y = A(y) if isinstance(A, operators.Mask) else y
        outs = {"least squares": A.pinv(y).clamp(-1, 1)}
        for name in given.methods:
            at = time.process_time()
            outs[name] = restore.restored(model, A, y, z, method=name, sigma=SIGMA, nfe=given.nfe, seed=1).detach()
            print(text, name, f"{time.process_time() - at:.0f} s", flush=True)
        for name, out in outs.items():
            rows.setdefault(name, {})[text] = (metrics.psnr(out, x).value, metrics.ssim(out, x).value)
            print(f"  {name:14s} {rows[name][text][0]:6.2f} dB  SSIM {rows[name][text][1]:.3f}", flush=True)
        best = max(given.methods, key=lambda k: rows[k][text][0])
        strip = torch.cat([x, restore.shown(y, A, tuple(x.shape[1:])), outs[best]])
        about = {"made by": "benchmarks/inverse_real.py", "operator": text, "sigma": SIGMA, "method": best}
        file = given.out.parent / "images" / f"inverse_real_{text.split(':')[0]}.png"
        pictures.save_png(pictures.grid(strip, 4, gap=2), file, about | {"shown": "before, measurement, after"})
        rows.setdefault("best", {})[text] = best
    chosen = rows.pop("best")
    spent = f"{time.process_time() - began:.0f} s of one core, of which {fitted:.0f} s fitted the prior"
    command = " ".join(["python benchmarks/inverse_real.py", *sys.argv[1:]])
    lines = [
        "## Photographs, in patches",
        "",
        f"Made by `{command}` ({spent}). Pictures are the middle {side} x {side} pixels of the Kodak photographs "
        f"number {', '.join(map(str, KEPT_OUT))} of `SUFFUSE_DATA/test_images` (grey, squeezed to squares by their "
        f"source). The prior is a mixture of {len(world.flat)} Gaussians of {PATCH} x {PATCH} patches, fitted to the "
        "nine other pictures: no network, and it knows nothing larger than a patch. `joint.average` makes it a "
        f"denoiser of whole pictures by windows every {STRIDE} pixels. Noise sigma {SIGMA:g}, {given.nfe} evaluations, "
        "one sample each; PSNR in dB / SSIM, mean over the four.",
        "",
        "| method | " + " | ".join(PROBLEMS) + " |",
        "|---|" + "---:|" * len(PROBLEMS),
    ]
    for name, found in sorted(rows.items(), key=lambda kv: -sum(v[0] for v in kv[1].values())):
        lines.append(f"| {name} | " + " | ".join(f"{found[p][0]:.2f} / {found[p][1]:.3f}" for p in PROBLEMS) + " |")
    for text in PROBLEMS:
        lines += ["", f"{text}: before, measurement, and after by {chosen[text]}."]
        lines += ["", f"![{text}](images/inverse_real_{text.split(':')[0]}.png)"]
    section(given.out, "real", "\n".join(lines))


if __name__ == "__main__":
    main()
