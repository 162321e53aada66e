"""A run's report: one self-contained HTML page with its pictures and its numbers explained."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from suffuse import __version__
from suffuse.recipes.run import Run
from suffuse.training.files import write_text

__all__ = ["write_report"]

EXPLAINED = {
    "label_accuracy": (
        "Label accuracy",
        "1 is best. A classifier trained on real digits only reads each sample; this is "
        "how often it reads the label that was asked for.",
    ),
    "frechet_ratio": (
        "Frechet ratio",
        "1 is as good as real data. Distance from the samples to unseen digits, in the "
        "classifier's features, over the distance from the real training digits to the same.",
    ),
    "precision": ("Precision", "Share of samples that look like real digits: within the region that these cover."),
    "recall": ("Recall", "Share of real digits within the region that the samples cover: low means little variety."),
    "memorised": (
        "Memorised",
        "Share of samples closer to a training digit than 99 % of unseen real digits are. "
        "A model that draws new digits stays near 0.01; one that copies goes to 1.",
    ),
    "judge_accuracy": (
        "The judge itself",
        "How often the classifier reads unseen real digits right: no label accuracy means more than this.",
    ),
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-weight: 600; } h2 { margin-top: 2.2rem; font-weight: 600; font-size: 1.2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top; padding: .5rem .8rem;
border-bottom: 1px solid #ddd; } td.number { font-variant-numeric: tabular-nums;
white-space: nowrap; font-weight: 600; }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; } .plot { image-rendering: auto; }
.note { color: #666; font-size: .9rem; } .pair { display: flex; gap: 1.5rem; flex-wrap: wrap; }
"""


def _picture(path: Path, alt: str, kind: str = "") -> str:
    mime = "gif" if path.suffix == ".gif" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/{mime};base64,{data}">'


def write_report(run: Run, result: dict[str, Any]) -> Path:
    """Write report.html into the run's folder and return its path."""
    out = run.path
    rows = []
    for name, (title, text) in EXPLAINED.items():
        m = result[name]
        low, high = m["interval"]
        rows.append(
            f'<tr><td>{title}</td><td class="number">{m["value"]:.3f}</td>'
            f'<td class="number">{low:.3f} to {high:.3f}</td><td>{m["n"]}</td>'
            f'<td>{text}<br><span class="note">{html.escape(m["how"])}</span></td></tr>'
        )
    settings = ", ".join(f"{k} {v}" for k, v in run.settings.items())
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>suffuse: {run.recipe}</title><style>{STYLE}</style></head><body>
<h1>{run.recipe}: a diffusion model, trained here</h1>
<p>Trained in {run.train_seconds:.0f} s ({html.escape(settings)}). Each sample takes {result["nfe"]} network evaluations
of {html.escape(result["sampler"])}; {result["samples_per_second"]:.0f} samples a second.</p>
<h2>Samples</h2><p>One row for each label, 0 to 9; none of these was drawn by a person.</p>
{_picture(out / "samples.png", "ten generated digits of each class")}
<h2>From noise to digit</h2><p>Above, the state x<sub>t</sub> as noise (left) becomes data (right); below, what the
model believes the clean digit is at that moment. Labels 3, 5, 8.</p>
{_picture(out / "denoising.png", "states and predictions along the way")}
{_picture(out / "denoising.gif", "the same as an animation, all ten labels")}
<h2>What was measured</h2>
<table><tr><th></th><th>value</th><th>95 % interval</th><th>n</th><th>what it means</th></tr>{"".join(rows)}</table>
<h2>Training</h2>{_picture(out / "loss.png", "loss against samples seen", "plot")}
<p class="note">suffuse {__version__}, model {result["model_hash"]}, evaluated with seed {result["seed"]}.</p>
</body></html>
"""
    write_text(out / "report.html", page)
    return out / "report.html"
