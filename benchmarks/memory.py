"""Peak memory of a training step beside diffusers' and azula's networks, each in a process of its own.

Memory is what the process grows by, from before the network is built to the peak of four steps, or with defaults of ten
(VmHWM, reset by /proc/self/clear_refs; Linux only). Settings and networks are those of train_speed.py.

    python benchmarks/memory.py [--quick] [--repeat 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings

import torch

from train_speed import CLASSES, contestants, default_of, step_of


def status(name: str) -> float:
    """A line of /proc/self/status, in MB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def one(kind: str, maker: str, setting: str, quick: bool) -> float:
    """MB that building and training one network adds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    size = 8 if quick else 64
    warm = torch.nn.Conv2d(3, 8, 3)
    warm(torch.randn(8, 3, 32, 32)).sum().backward()
    batch = {"x": torch.rand(size, 3, 32, 32) * 2 - 1, "label": torch.arange(size) % CLASSES}
    with torch.device("meta"):
        contestants(kind, quick, maker)  # what is imported on the way does not count
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    (who,) = contestants(kind, quick, maker)
    work = default_of(who, batch) if setting == "defaults" else step_of(who, batch, True, None)
    for _ in range(1 if setting == "defaults" else 4):
        work()
    return status("VmHWM") - before


def main() -> None:
    """Print the table."""
    read = argparse.ArgumentParser()
    read.add_argument("--quick", action="store_true")
    read.add_argument("--repeat", type=int, default=2)
    read.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = read.parse_args()
    if options.one:
        print("MB", one(*options.one, options.quick))
        return
    for kind in ("unet", "dit"):
        for setting in ("fp32", "defaults"):
            found = {}
            for maker in ("suffuse", "diffusers", "azula"):
                command = [sys.executable, __file__, "--one", kind, maker, setting, *["--quick"] * options.quick]
                runs = [
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    for _ in range(options.repeat)
                ]
                found[maker] = min(float(text.rsplit("MB", 1)[1]) for text in runs)
                print(f"{kind:>5} {setting:>9} {maker:>10} {found[maker]:8.1f} MB", flush=True)
            ratio = found["suffuse"] / min(found["diffusers"], found["azula"])
            print(f"{kind:>5} {setting:>9}  suffuse / least peer {ratio:.2f}")


if __name__ == "__main__":
    main()
