"""Training and sampling speed beside diffusers' and azula's networks, in one run, with a roofline.

UNet against `UNet2DModel` and azula's `UNet`; DiT against `DiTTransformer2DModel` and azula's `ViT`: the same width,
depth, heads and patch, 32 x 32, batch 64. Where a peer's own parts make it larger or smaller (diffusers embeds the time
once a block, azula's U-Net has no attention and its width is chosen for an equal count), the count is printed.

    fp32       one step written once: x_t, squared error, clipped gradients, fused AdamW, the heap kept as `fit` keeps
               it; only the network differs
    best       the same under bf16 autocast
    defaults   suffuse: `fit` as it is. Peers: float32, torch.optim.AdamW as it is, the noise of their own scheduler

Every number is the fastest of alternating repetitions. Roofline: floating point operations of the network's forward
pass (torch's counter), three times, over the time of a step, as a share of the fastest matrix product measured here.

    python benchmarks/train_speed.py [--quick] [--net unet|dit|small|base] [--repeat 3] [--out FILE]
    python benchmarks/train_speed.py --profile --net unet         where the time of suffuse's step goes
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import suffuse as sf
from suffuse import losses, nets
from suffuse.training.heap import keeping_heap
from suffuse.training.precision import chosen

CLASSES = 10


@dataclass
class Contestant:
    """A network with its maker's name, and how to call it with (x, t in [0, 1], label)."""

    maker: str
    net: nn.Module
    call: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def millions(self) -> float:
        return sum(p.numel() for p in self.net.parameters() if p.requires_grad) / 1e6


class _Modulated(nn.Module):
    """An azula network with an embedding of time and label, which azula leaves to its user."""

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        from suffuse.nets.embed import TimeEmbedding

        self.net, self.time, self.label = net, TimeEmbedding(width), nn.Embedding(CLASSES + 1, width)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.net(x, F.silu(self.time(t) + self.label(label)))


def contestants(kind: str, quick: bool, only: str | None = None) -> list[Contestant]:
    """suffuse, diffusers and azula, or only one of them, each with a network of this kind."""
    quickly = {"unet": (16, 0), "dit": (64, 2), "small": (64, 2), "base": (64, 2)}
    slowly = {"unet": (48, 0), "dit": (192, 6), "small": (384, 6), "base": (768, 6)}
    width, depth = (quickly if quick else slowly)[kind]
    makers = {"suffuse": _suffuse, "diffusers": _diffusers, "azula": _azula}
    found = []
    for maker in ["suffuse"] if kind in ("small", "base") else makers:
        if only in (None, maker):
            try:
                found.append(makers[maker](kind, width, depth))
            except ImportError:
                print(f"{maker} is not here: pip install {maker}, azula with --no-deps and einops")
    return found


def _suffuse(kind: str, width: int, depth: int) -> Contestant:
    told: dict[str, Any] = {"label": nets.Label(CLASSES)}
    if kind == "unet":
        net = nets.UNet(3, width=width, multipliers=(1, 2, 2), blocks=1, attention=(-1,), heads=4, conditions=told)
    else:
        patch = 2 if kind == "small" else 4
        net = nets.DiT(3, patch=patch, width=width, depth=depth, heads=width // 64, conditions=told)
    return Contestant("suffuse", net, lambda x, t, label: net(x, t, label=label))


def _diffusers(kind: str, width: int, depth: int) -> Contestant:
    from diffusers import DiTTransformer2DModel

    if kind == "unet":
        net = unet2d(3, 32, width, CLASSES + 1)
        return Contestant("diffusers", net, lambda x, t, label: net(x, 1000 * t, class_labels=label).sample)
    net = DiTTransformer2DModel(
        width // 64, 64, 3, 3, num_layers=depth, sample_size=32, patch_size=4, num_embeds_ada_norm=CLASSES
    )
    return Contestant("diffusers", net, lambda x, t, label: net(x, 1000 * t, class_labels=label).sample)


def unet2d(channels: int, side: int, width: int, classes: int) -> Any:
    """diffusers' U-Net with the levels, blocks and attention of `nets.UNet(channels, width, (1, 2, 2), 1, (-1,))`."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(width, 2 * width, 2 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=width // 4,
        attention_head_dim=width // 2,
        num_class_embeds=classes,
        resnet_time_scale_shift="scale_shift",
    )


def _azula(kind: str, width: int, depth: int) -> Contestant:
    from azula.nn.unet import UNet
    from azula.nn.vit import ViT

    if kind == "unet":
        with torch.device("meta"):
            millions = _suffuse(kind, width, depth).millions

        def build(k: int) -> nn.Module:
            return _Modulated(
                UNet(3, 3, hid_channels=(k, 2 * k, 2 * k), hid_blocks=(1, 1, 1), mod_features=4 * k), 4 * k
            )

        def away(k: int) -> float:
            with torch.device("meta"):
                return abs(sum(p.numel() for p in build(k).parameters()) / 1e6 - millions)

        net = build(min(range(8, 129, 4), key=away))
    else:
        inner = ViT(
            3, 3, hid_channels=width, hid_blocks=depth, patch_size=4, mod_features=width, attention_heads=width // 64
        )
        net = _Modulated(inner, width)
    return Contestant("azula", net, lambda x, t, label: net(x, t, label))


def step_of(who: Contestant, batch: dict[str, Tensor], fused: bool, dtype: torch.dtype | None) -> Callable[[], None]:
    """One training step, written once for all networks."""
    how = {"fused": True} if fused else {}
    optimizer = torch.optim.AdamW(who.net.parameters(), lr=1e-4, **how)
    x, label = batch["x"], batch["label"]
    who.net.train()

    def step() -> None:
        t, eps = torch.rand(len(x)), torch.randn_like(x)
        at = t.view(-1, 1, 1, 1)
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            out = who.call((1 - at) * x + at * eps, t, label)
        F.mse_loss(out.float(), eps - x).backward()
        torch.nn.utils.clip_grad_norm_(who.net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def default_of(who: Contestant, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One step as its maker would have it: `fit`, or float32 with the plain optimiser and the scheduler's noise."""
    x, label = batch["x"], batch["label"]
    if who.maker == "suffuse":
        model = sf.Denoiser(who.net, sf.schedules.Linear(), predicts="velocity")
        return lambda: void(sf.fit(losses.denoising, batch, model, steps=STEPS, batch_size=len(x), progress=False))
    optimizer = torch.optim.AdamW(who.net.parameters(), lr=1e-4)
    if who.maker == "diffusers":
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(1000)

    def step() -> None:
        eps = torch.randn_like(x)
        if who.maker == "diffusers":
            k = torch.randint(0, 1000, (len(x),))
            noisy, t = scheduler.add_noise(x, eps, k), k / 1000
        else:
            t = torch.rand(len(x))
            noisy = (1 - t.view(-1, 1, 1, 1)) * x + t.view(-1, 1, 1, 1) * eps
        F.mse_loss(who.call(noisy, t, label), eps).backward()
        torch.nn.utils.clip_grad_norm_(who.net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return lambda: [step() for _ in range(STEPS)] and None


STEPS = 10
"""Of one timing."""
PARTS = {
    "convolutions": ("convolution",),
    "matrix products": ("mm",),
    "copies and casts": ("copy_", "cat"),
    "norms": ("group_norm", "layer_norm"),
    "silu, gelu, softmax": ("silu", "gelu", "softmax"),
    "sums and products": ("aten::add", "aten::mul", "aten::sum", "aten::lerp"),
}
"""Names of operations, the first that fits; all others are "the rest"."""


def profile_of(step: Callable[[], None]) -> dict[str, float]:
    """Shares of the processor time of three steps."""
    with keeping_heap(torch.device("cpu")):
        for _ in range(2):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(3):
                step()
    shares = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for each in seen.key_averages():
        part = next((part for part, names in PARTS.items() if any(n in each.key for n in names)), "the rest")
        shares[part] += each.self_cpu_time_total
    return {part: taken / sum(shares.values()) for part, taken in shares.items()}


def void(_: Any) -> None:
    """Nothing."""


def sampling_of(who: Contestant, batch: dict[str, Tensor], dtype: torch.dtype | None) -> Callable[[], None]:
    """One evaluation of the network, in eval mode and without gradients: what sampling is made of."""
    x, label, t = batch["x"], batch["label"], torch.full((len(batch["x"]),), 0.5)

    def look() -> None:
        who.net.eval()
        with torch.no_grad(), nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            who.call(x, t, label)

    return look


def fastest(works: dict[str, Callable[[], None]], repeat: int) -> dict[str, float]:
    """Seconds of each, the least of alternating repetitions after one that does not count."""
    best = dict.fromkeys(works, float("inf"))
    for k in range(repeat + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if k:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def peak(dtype: torch.dtype, repeat: int = 5) -> float:
    """Operations a second of the fastest square matrix product."""
    best = 0.0
    for n in (512, 1024, 2048):
        a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
        seconds = fastest({"mm": lambda a=a, b=b: void(a @ b)}, repeat)["mm"]
        best = max(best, 2 * n**3 / seconds)
    return best


def flops(who: Contestant, batch: dict[str, Tensor]) -> float:
    """Of one forward pass of the batch, with attention written out: the counter does not know the CPU's fused one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        who.call(batch["x"], torch.full((len(batch["x"]),), 0.5), batch["label"])
    return counter.get_total_flops()


def main() -> None:
    """Print and write the table."""
    read = argparse.ArgumentParser()
    read.add_argument("--quick", action="store_true", help="tiny networks, batch 8: does it run")
    read.add_argument("--net", choices=["unet", "dit", "small", "base"], action="append")
    read.add_argument("--repeat", type=int, default=3)
    read.add_argument("--threads", type=int, default=2)
    read.add_argument("--profile", action="store_true", help="of suffuse's step alone")
    read.add_argument("--out")
    options = read.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    size = 8 if options.quick else 64
    batch = {"x": torch.rand(size, 3, 32, 32) * 2 - 1, "label": torch.arange(size) % CLASSES}
    kinds = options.net or ["unet", "dit", "small", "base"]
    if options.profile:
        for kind in kinds:
            (who,) = contestants(kind, options.quick, "suffuse")
            for unit, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
                shares = profile_of(step_of(who, batch, True, dtype))
                print(kind, unit, ", ".join(f"{part} {share:.1%}" for part, share in shares.items()), flush=True)
        return
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {unit: peak(dtype) for unit, dtype in dtypes.items()}
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, batch {size}; matrix products: "
        f"fp32 {peaks['fp32'] / 1e9:.0f}, bf16 {peaks['bf16'] / 1e9:.0f} Gflop/s"
    )
    rows = []
    for kind in kinds:
        field = contestants(kind, options.quick)
        peaks = {unit: max(was, peak(dtypes[unit])) for unit, was in peaks.items()}
        for setting in ("fp32", "best", "defaults", "sampling fp32", "sampling bf16"):
            dtype = torch.bfloat16 if setting in ("best", "sampling bf16") else None
            works = {}
            for who in field:
                if setting == "defaults":
                    works[who.maker] = default_of(who, batch)
                elif setting.startswith("sampling"):
                    works[who.maker] = sampling_of(who, batch, dtype)
                else:
                    works[who.maker] = step_of(who, batch, True, dtype)
            with keeping_heap(torch.device("cpu")) if setting in ("fp32", "best") else nullcontext():
                seconds = fastest(works, options.repeat)
            for who in field:
                each = seconds[who.maker] / (STEPS if setting == "defaults" else 1)
                passes = 1 if setting.startswith("sampling") else 3
                taken = (
                    chosen("auto", torch.device("cpu")) if setting == "defaults" and who.maker == "suffuse" else dtype
                )
                unit = "fp32" if taken is None else "bf16"
                row = {
                    "net": kind, "setting": setting, "maker": who.maker, "millions": round(who.millions, 3),
                    "images_per_second": round(size / each, 1),
                    "roofline": round(passes * flops(who, batch) / each / peaks[unit], 3), "against": unit,
                    "peak": peaks[unit],
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{kind:>5} {setting:>14} {who.maker:>10} {who.millions:7.2f} M {row['images_per_second']:8.1f} /s"
                    f"  {row['roofline']:.0%} of the {unit} peak",
                    flush=True,
                )
            ours = rows[-len(field)]["images_per_second"]
            theirs = max((r["images_per_second"] for r in rows[-len(field) :][1:]), default=None)
            if theirs:
                print(f"{kind:>5} {setting:>14}  suffuse / best peer {ours / theirs:.2f}", flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
