"""`import suffuse` against `import torch`: medians of 7 fresh interpreters each, alternating.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


def measure(repeats: int = 7) -> tuple[float, float]:
    """(torch, suffuse) median seconds, interpreter start taken off. `suffuse` means with its everyday names."""
    empty, torch, suffuse = [], [], []
    for _ in range(repeats):
        empty.append(seconds("pass"))
        torch.append(seconds("import torch"))
        suffuse.append(seconds("import suffuse as sf; sf.Denoiser, sf.sample, sf.noise, sf.guide, sf.schedules"))
    start = statistics.median(empty)
    return statistics.median(torch) - start, statistics.median(suffuse) - start


if __name__ == "__main__":
    seconds("import torch")  # fill the disk cache
    torch, suffuse = measure()
    print(f"import torch {torch:.3f} s, import suffuse {suffuse:.3f} s, ratio {suffuse / torch:.3f} (bar 1.10)")
    sys.exit(suffuse / torch > 1.10)
