"""See every law fail: plant one fault at a time in a copy of suffuse and run the law that should notice.

python benchmarks/planted_faults.py            prints the table of CONTRIBUTING.md; exits 1 if a fault survives
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAULTS = [  # law, file, what stands there, the fault, tests that should fail, in words
    (
        "1 plan",
        "samplers/ancestral.py",
        "return b.alpha * a.x0 + sqrt(b.sigma**2 - d**2) * a.eps + d * step.z",
        "return a.alpha * a.x0 + sqrt(b.sigma**2 - d**2) * a.eps + d * step.z",
        "laws/test_plan.py",
        "DDIM with alpha of the wrong end",
    ),
    (
        "1 plan",
        "samplers/rule.py",
        "b.sigma * math.sqrt(max(0.0, 1 - (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2))",
        "a.sigma * math.sqrt(max(0.0, 1 - (a.alpha * b.sigma / (b.alpha * a.sigma)) ** 2))",
        "laws/test_plan.py -k equal",
        "posterior deviation scaled by sigma_a",
    ),
    (
        "1 plan",
        "samplers/plan.py",
        "-= c * self.rows[i].alpha / self.rows[i].sigma",
        "-= c * self.rows[i].alpha",
        "laws/test_plan.py",
        "canonical form forgets 1/sigma",
    ),
    (
        "1 plan",
        "samplers/plan.py",
        "noise[k, draws[i]] += c",
        "noise[k, draws[i]] += 0",
        "laws/test_plan.py",
        "the law does not count fresh noise",
    ),
    (
        "2 order",
        "samplers/stages.py",
        "[(1.0, [1.0])], [0.5, 0.5])",
        "[(1.0, [1.0])], [0.4, 0.6])",
        "laws/test_order.py -k declared",
        "Heun's weights 0.4 and 0.6 (exact for a point, so law 1 is blind)",
    ),
    (
        "2 order",
        "samplers/adams.py",
        "- (n.sigma / (s * q(n))) * n.x0",
        "- (n.sigma / q(n)) * n.x0",
        "laws/test_order.py -k trig_adams",
        "the slope along the angle without 1/s (right at s = 1)",
    ),
    (
        "2 order",
        "samplers/weights.py",
        "values = lagrange([angle(n, spread) for n in nodes], start + (end - start) * s)",
        "values = lagrange([angle(n, spread) for n in nodes], start + 1.1 * (end - start) * s)",
        "laws/test_order.py -k trig_adams",
        "weights along the angle integrated too far",
    ),
    (
        "2 order",
        "samplers/weights.py",
        "raw = (lagrange(at, coordinate(a, u)) * (w * np.exp(rate * (u - end)))).sum(1)",
        "raw = (lagrange(at, coordinate(a, u)) * (w * np.exp(rate * (u - end)))).sum(1) * np.linspace(1, 1.1, len(at))",
        "laws/test_order.py -k declared",
        "difference weights off by up to a tenth",
    ),
    (
        "2 order",
        "samplers/ancestral.py",
        "return step.b.alpha * step.a.x0 + step.b.sigma * step.z",
        "return step.b.alpha * step.a.x0 + step.b.sigma * (0.6 * step.z + 0.8 * step.a.eps)",
        "laws/test_order.py -k stochastic",
        "consistency reuses its noise",
    ),
    (
        "2 order",
        "random.py",
        "return wa + (wb - wa) * share + xi * math.sqrt((q - qa) * (1 - share))",
        "return wa + (wb - wa) * share + xi * math.sqrt(q - qa)",
        "laws/test_invariance.py -k Noise",
        "a bridge as wide as a free motion",
    ),
    (
        "3 round trip",
        "schedules.py",
        "return 2 * two_log / (self.beta_min + root)",
        "return 2 * two_log / (self.beta_min + 1.01 * root)",
        "laws/test_round_trip.py",
        "VP's inverse off by a percent",
    ),
    (
        "3 round trip",
        "schedules.py",
        "return -math.pi / 2 * sigma, math.pi / 2 * alpha",
        "return -math.pi / 2 * alpha, math.pi / 2 * sigma",
        "laws/test_round_trip.py",
        "Cosine's rates exchanged",
    ),
    (
        "3 round trip",
        "schedules.py",
        "(i / steps + offset) / (1 + offset)",
        "(i / steps + offset)",
        "laws/test_round_trip.py laws/test_published.py",
        "cosine betas without their normalisation",
    ),
    (
        "3 round trip",
        "parameterize.py",
        'v = Parameterization("v", lambda schedule, t, alpha, sigma: (-sigma, alpha))',
        'v = Parameterization("v", lambda schedule, t, alpha, sigma: (-alpha, sigma))',
        "laws/test_round_trip.py laws/test_published.py",
        "v with alpha and sigma exchanged",
    ),
    (
        "3 round trip",
        "parameterize.py",
        "-sigma / det),",
        "sigma / det),",
        "laws/test_round_trip.py",
        "a sign of the 2x2 solve",
    ),
    (
        "3 round trip",
        "oracle.py",
        "logdet = var.log().sum(-1) * (d / var.shape[-1])",
        "logdet = var.log().sum(-1)",
        "laws/test_round_trip.py",
        "isotropic determinant counted once",
    ),
    (
        "3 round trip",
        "denoise/composed.py",
        "inner = call(part, x * scale, time",
        "inner = call(part, x, time",
        "laws/test_round_trip.py",
        "retiming without rescaling",
    ),
    (
        "4 reduction",
        "guidance/cfg.py",
        "out = no + (yes - no) * w",
        "out = no + (yes - no) * (1 + w)",
        "laws/test_reduction.py",
        "the other guidance convention",
    ),
    (
        "4 reduction",
        "guidance/interval.py",
        "(t >= low) & (t <= high)",
        "(t >= low) & (t < high)",
        "laws/test_reduction.py",
        "interval open at one end for rows",
    ),
    (
        "4 reduction",
        "denoise/network.py",
        "every.rows(slice(i * rows, (i + 1) * rows))",
        "every.rows(slice(0, rows))",
        "laws/test_reduction.py",
        "both bindings read the first half",
    ),
    (
        "8 invariance",
        "random.py",
        "items = index(shape[0], 0, first)",
        "items = index(shape[0], 0, first) * shape[0]",
        "laws/test_invariance.py",
        "noise depends on the batch size",
    ),
    (
        "8 invariance",
        "random.py",
        "key = philox((index(shape[axis], axis), 0, axis, 1), key)[:2]",
        "key = philox((index(shape[axis], axis), shape[-1], axis, 1), key)[:2]",
        "laws/test_invariance.py",
        "noise depends on padding",
    ),
    (
        "8 invariance",
        "oracle.py",
        "share = logits.softmax(1)[..., None]",
        "share = logits.softmax(0)[..., None]",
        "laws/test_invariance.py laws/test_round_trip.py",
        "responsibilities across the batch",
    ),
    (
        "8 invariance",
        "denoise/network.py",
        "new.bound = {k: picked(v, index) for k, v in self.bound.items()}",
        "new.bound = dict(self.bound)",
        "laws/test_invariance.py",
        "rows taken without their conditions",
    ),
    (
        "8 invariance",
        "samplers/plan.py",
        "walk = Walk(self, fresh(denoiser), states, path)",
        "walk = Walk(self, denoiser, states, path)",
        "laws/test_invariance.py",
        "state of one run leaks into the next",
    ),
    (
        "8 resume",
        "training/backward.py",
        "torch.manual_seed(mixed(*words))",
        "torch.manual_seed(mixed(*words)) if step == 0 else None",
        "training/test_fit.py",
        "noise runs on from the generator instead of (seed, step)",
    ),
    (
        "8 resume",
        "training/state.py",
        'name: read_tensors(newest / f"{name}.safetensors") for name in (*modules,',
        "name: read_tensors(newest / f\"{name.replace('ema', 'model')}.safetensors\") for name in (*modules,",
        "training/test_fit.py",
        "the average restored from the weights",
    ),
    (
        "9 misuse",
        "schedules.py",
        "if not 0.0 <= t <= 1.0:",
        "if t > 1.0:",
        "laws/test_misuse.py",
        "negative times pass",
    ),
    (
        "9 misuse",
        "training/files.py",
        "if not safe and",
        "if False and",
        "training/test_files.py",
        "pickles are not named",
    ),
    (
        "2 order",
        "samplers/adams.py",
        "w = weights.noise_weights(a, b, nodes, coordinate)",
        "w = [1.05 * c for c in weights.noise_weights(a, b, nodes, coordinate)]",
        "laws/test_order.py -k declared",
        "noise weights five percent too large",
    ),
    (
        "2 order",
        "samplers/unipc.py",
        "return [0.5]",
        "return [0.6]",
        "laws/test_order.py -k declared",
        "UniPC's first coefficient 0.6",
    ),
    (
        "2 order",
        "samplers/stochastic.py",
        "g2 = 2 * a.sigma * ds - 2 * f * a.sigma**2",
        "g2 = 2 * a.sigma * ds - f * a.sigma**2",
        "laws/test_order.py",
        "Euler-Maruyama's g^2 without a factor 2",
    ),
    (
        "1 plan",
        "samplers/stochastic.py",
        "(level.alpha * lift) ** 2 * (scale**2 - 1)",
        "(level.alpha * lift) ** 2 * (scale - 1)",
        "laws/test_plan.py",
        "churn's declared inflation",
    ),
    (
        "8 resume",
        "training/fit.py",
        "whole = bool((mean + norm).isfinite())",
        "whole = bool(mean.isfinite())",
        "training/test_fit.py",
        "an infinite gradient passes",
    ),
]


def survives(law: str, file: str, old: str, new: str, tests: str) -> bool:
    """Whether the tests pass with the fault planted."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        target = copy / "src" / "suffuse" / file
        text = target.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{file}: the line to spoil is there {text.count(old)} times: {old}")
        target.write_text(text.replace(old, new))
        words = [f"tests/{w}" if w.endswith(".py") else w for w in tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *words]
        done = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy / "src")}, capture_output=True, text=True
        )
        said = done.stdout
        raised = done.returncode == 2 and ("PlanError" in said or "ValueError" in said)  # while the laws were collected
        if done.returncode not in (0, 1) and not raised:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-1000:]}")
        return done.returncode == 0


if __name__ == "__main__":
    left = 0
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda fault: survives(*fault[:5]), FAULTS))
    for (law, file, _, _, tests, words), alive in zip(FAULTS, found, strict=True):
        left += alive
        where = ", ".join(f"`tests/{w}`" for w in tests.split() if w.endswith(".py"))
        print(f"| {law} | {words} (`{file}`) | {'SURVIVED ' if alive else ''}{where} |", flush=True)
    print(f"\n{len(FAULTS) - left} of {len(FAULTS)} faults were caught", file=sys.stderr)
    sys.exit(left > 0)
