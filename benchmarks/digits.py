"""The main job, three times: train and evaluate `digits` with seeds 0, 1, 2 and print the medians against their bars.

python benchmarks/digits.py [--seeds 3]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from suffuse.recipes import digits

BARS = {"label_accuracy": (">=", 0.97), "frechet_ratio": ("<=", 1.25), "memorised": ("<=", 0.05)}


def main(seeds: int) -> bool:
    """Print a row a seed, then the medians; whether every bar is met."""
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            run = digits.train(Path(folder) / "run", seed=seed, progress=False)
            result = digits.evaluate(run)
            row = {name: result[name]["value"] for name in (*BARS, "precision", "recall", "judge_accuracy")}
            row |= {"nfe": result["nfe"], "train_s": result["train_seconds"], "total_s": time.monotonic() - began}
            rows.append(row)
            print(f"seed {seed}: " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    middle = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
    print("median: " + "  ".join(f"{k} {v:.3f}" for k, v in middle.items()))
    met = {k: middle[k] >= bar if sign == ">=" else middle[k] <= bar for k, (sign, bar) in BARS.items()}
    met |= {"nfe <= 20": middle["nfe"] <= 20, "total <= 150 s": max(row["total_s"] for row in rows) <= 150}
    print("bars:   " + "  ".join(f"{k} {'met' if ok else 'MISSED'}" for k, ok in met.items()))
    return all(met.values())


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[2]) if len(sys.argv) > 2 else 3))
