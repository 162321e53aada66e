"""Sampler arithmetic per step, network excluded: suffuse against diffusers' DPMSolverMultistepScheduler, in one run.

Both get the same constant network output at (1, 4, 64, 64) and (16, 3, 64, 64) in float32 on one thread; conversion
from the network's output to x0 is part of the step on both sides.

    python benchmarks/step_overhead.py
"""

import statistics
import sys
import time
import warnings

import torch

import suffuse as sf

STEPS, REPEATS = 50, 15


def ours(x: torch.Tensor, order: int) -> float:
    """Seconds a step of dpmpp on the scaled-linear schedule, eps prediction."""
    schedule = sf.schedules.Discrete.scaled_linear()
    output = torch.randn_like(x)
    model = sf.Denoiser(lambda x, t: output, schedule, predicts="eps")
    plan = sf.samplers.dpmpp(order=order, weights="paper").plan(schedule, sf.grids.leading(schedule, STEPS, offset=1))
    began = time.perf_counter()
    plan(model, x)
    return (time.perf_counter() - began) / STEPS


def theirs(x: torch.Tensor, order: int) -> float:
    """Seconds a step of DPMSolverMultistepScheduler.step."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        solver_order=order,
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.set_timesteps(STEPS)
    output = torch.randn_like(x)
    began = time.perf_counter()
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, x).prev_sample
    return (time.perf_counter() - began) / STEPS


def measure(shape: tuple[int, ...], order: int) -> tuple[float, float]:
    """(ours, theirs): medians in microseconds of alternating runs."""
    x = sf.noise(shape, seed=0)
    a, b = [], []
    with torch.no_grad():
        for _ in range(REPEATS):
            a.append(ours(x, order))
            b.append(theirs(x, order))
    return statistics.median(a) * 1e6, statistics.median(b) * 1e6


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    failed = False
    for shape, bar in (((1, 4, 64, 64), 1 / 5), ((16, 3, 64, 64), 0.7)):
        for order in (1, 2, 3):
            a, b = measure(shape, order)
            failed |= a / b > bar
            sizes = f"{shape!s:>16} order {order}"
            print(f"{sizes}: suffuse {a:7.1f} us, diffusers {b:7.1f} us, ratio {a / b:.3f} (bar {bar:.2f})")
    sys.exit(failed)
