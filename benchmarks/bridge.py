"""Out and in, on real digits: `python benchmarks/bridge.py` (needs the extras hub and data; a minute on two cores).

Out: a network of suffuse is trained on the digits and written by `to_diffusers`; another process, which knows diffusers
and one import of suffuse, opens it and draws with their DDIM, on a table of betas (eps) and on one that ends in pure
noise (v). In: a UNet2DModel is trained on the same digits by diffusers' own means and saved; `sf.hub.diffusers` opens
it. Both ways the pictures must agree to 1e-4, from the same noise, in float32. How good the pictures are is no part of
this: the loss at the beginning and at the end shows that something was learnt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import suffuse as sf
from suffuse import grids, nets, samplers, schedules
from suffuse.hub.folder import require

ROWS, SEED, STEPS, BAR = 16, 3, 20, 1e-4

THEIRS = """
import sys, diffusers, torch
from safetensors.torch import save_file
import suffuse.hub.portable
pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
seed = torch.Generator().manual_seed({SEED})
images = pipe({ROWS}, seed, num_inference_steps={STEPS}, output_type="pt").images
save_file({{"images": images.contiguous()}}, sys.argv[2])
"""


def pictures(x: Tensor) -> Tensor:
    """From [-1, 1] to what their pipelines return."""
    return (x / 2 + 0.5).clamp(0, 1)


def starting() -> Tensor:
    """The noise that their pipelines draw."""
    return torch.randn((ROWS, 1, 8, 8), generator=torch.Generator().manual_seed(SEED))


def ours(steps: int, data: Any) -> Any:
    """A UNet of suffuse, trained on flows."""
    torch.manual_seed(0)
    net = nets.UNet(
        1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, conditions={"label": nets.Label(10)}
    )
    model = sf.Denoiser(net, schedules.Linear(), "velocity", shape=(1, 8, 8))
    return sf.fit(sf.losses.denoising, data, model, steps=steps, batch_size=64, lr=2e-3, progress=False).ema


def theirs(steps: int, data: Any, folder: Path) -> Any:
    """A UNet2DModel, trained and saved as diffusers' own tutorials do: the pipeline."""
    diffusers = require("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    table = diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for step in range(steps):
        x = data["x"][torch.randint(len(data["x"]), (64,))]
        noise, at = torch.randn_like(x), torch.randint(1000, (64,))
        loss = F.mse_loss(net(table.add_noise(x, noise, at), at).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, steps - 1):
            print(f"  their loss after {step + 1} steps: {loss.item():.3f}")
    pipe = diffusers.DDIMPipeline(net.eval(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def out(steps: int, data: Any, root: Path) -> dict[str, float]:
    """Largest differences of ours, opened by them."""
    model, found = ours(steps, data), {}
    batch = {k: v[:256] for k, v in data.items()}
    print(f"  our loss after {steps} steps: {sf.losses.denoising(model, batch).mean().item():.3f}")
    tables = {"eps": schedules.Discrete.ddpm(), "v": schedules.Discrete.scaled_linear().zero_terminal_snr()}
    for name, table in tables.items():
        sf.hub.to_diffusers(model, root / name, table=table)
        code = THEIRS.format(SEED=SEED, ROWS=ROWS, STEPS=STEPS)
        subprocess.run([sys.executable, "-c", code, str(root / name), str(root / f"{name}.safetensors")], check=True)
        images = load_file(root / f"{name}.safetensors")["images"]
        on = model.on(table)
        grid = (grids.leading if name == "eps" else grids.trailing)(table, STEPS)
        mine = sf.sample(on, starting(), sampler=samplers.ddim, grid=grid)
        found[f"out, {name}"] = (pictures(mine) - images).abs().max().item()
        assert images.std() > 0.1
    return found


def into(steps: int, data: Any, root: Path) -> dict[str, float]:
    """Largest difference of theirs, opened by us."""
    pipe = theirs(steps, data, root / "in")
    images = pipe(ROWS, torch.Generator().manual_seed(SEED), num_inference_steps=STEPS, output_type="pt").images
    model = sf.hub.diffusers(root / "in")
    mine = sf.sample(model, starting(), sampler=samplers.ddim, grid=grids.leading(model.schedule, STEPS))
    assert images.std() > 0.1
    return {"in, eps": (pictures(mine) - images).abs().max().item()}


def main() -> None:
    """Train both, cross over, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="of training, each way")
    steps = parser.parse_args().steps
    data = sf.data.digits("train")
    with tempfile.TemporaryDirectory() as folder:
        found = out(steps, data, Path(folder)) | into(steps, data, Path(folder))
    for name, value in found.items():
        print(f"{name}: largest difference {value:.1e} (bar {BAR:g})")
    if max(found.values()) > BAR:
        raise SystemExit("the bar is not met")


if __name__ == "__main__":
    main()
