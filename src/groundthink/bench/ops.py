"""`groundthink bench ops`: forward and backward of each backend against the reference loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from torch import Tensor

from groundthink import config as configs
from groundthink import records
from groundthink.bench.config import BenchOps
from groundthink.bench.measure import Results, Say, race, ratio, spread, stopwatch
from groundthink.device import pick_device
from groundthink.errors import unknown
from groundthink.ops import ssd, wkv6
from groundthink.ops.dispatch import able
from groundthink.ops.ssd import BACKENDS as SSD_BACKENDS
from groundthink.ops.testing import REGIMES, log_decays, relative_rms
from groundthink.ops.wkv6 import BACKENDS as WKV6_BACKENDS

BOUND = 1e-5
"""Largest relative RMS error against fp64 in fp32; above it no time is shown."""

Inputs = tuple[Tensor, ...]
Draw = Callable[[torch.Generator], Inputs]


def wkv6_inputs(regime: str, shape: tuple[int, int, int, int], g: torch.Generator) -> Inputs:
    """r, k, v, log_w, u and state for [B, T, H, N], fp64."""
    b, _, h, n = shape
    r, k, v = (normal(g, *shape) for _ in range(3))
    return r, k, v, log_decays(regime, shape, g), normal(g, h, n), normal(g, b, h, n, n)


def ssd_inputs(shape: tuple[int, int, int, int, int], g: torch.Generator) -> Inputs:
    """x, dt, A, B, C, D and state for [B, T, H, P, N] and one group, fp64."""
    b, t, h, p, n = shape
    dt = torch.exp(-5 + normal(g, b, t, h))
    rate = -(1 + 15 * torch.rand(h, generator=g, dtype=torch.float64))
    B, C = normal(g, b, t, 1, n), normal(g, b, t, 1, n)
    return normal(g, b, t, h, p), dt, rate, B, C, normal(g, h), normal(g, b, h, p, n)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


CASES: dict[str, tuple[Callable, dict, Draw]] = {
    **{
        f"wkv6-{regime}": (wkv6, WKV6_BACKENDS, partial(wkv6_inputs, regime, (4, 256, 4, 64)))
        for regime in REGIMES
    },
    "wkv6-small-heads": (wkv6, WKV6_BACKENDS, partial(wkv6_inputs, "initial", (8, 256, 4, 32))),
    "ssd": (ssd, SSD_BACKENDS, partial(ssd_inputs, (1, 512, 8, 64, 64))),
    "ssd-batch": (ssd, SSD_BACKENDS, partial(ssd_inputs, (8, 256, 4, 64, 64))),
}
"""Op, its backends and its inputs by name; the inputs are in the shapes that models have."""


def run(config: BenchOps) -> int:
    """Measure, show one table and append the records; 1 if a backend is not equal to fp64."""
    for name in config.only:
        if name not in CASES:
            raise unknown("case", name, CASES)
    device = pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    console = Console(highlight=False)
    provenance = {"config_hash": configs.digest(config), "seed": config.seed}
    results = Results(config.out, records.environment() | provenance)
    with console.status("") as status:
        names = config.only or tuple(CASES)
        equal = [measure(name, config, device, results, status.update) for name in names]
    console.print(results.table(f"fp32 on {device}, {torch.get_num_threads()} threads"))
    if config.out:
        console.print(f"records: {config.out}")
    return 0 if all(equal) else 1


def measure(name: str, config: BenchOps, device: torch.device, results: Results, say: Say) -> bool:
    """Parity of every backend with fp64, then the race of those that hold it."""
    op, backends, draw = CASES[name]
    say(name)
    exact = [x.to(device) for x in draw(torch.Generator().manual_seed(config.seed))]
    inputs = [x.float() for x in exact]
    oracle = pass_both_ways(op, [x.double() for x in inputs], "reference")
    laps = {}
    names = able(backends, device)
    for backend in names:
        values = pass_both_ways(op, inputs, backend)
        error = max(relative_rms(x, y) for x, y in zip(values, oracle, strict=True))
        if not error <= BOUND:
            fields = {"value": None, "n": 1, "error": error}
            results.add(f"{name}, {backend}", "", fields, f"wrong: error {error:.0e}, not timed")
            continue
        lap = partial(pass_both_ways, op, inputs, backend)
        laps[backend] = partial(stopwatch, lap, device)
    seconds = race(laps, config.repeats, seconds=config.seconds)
    for backend, times in seconds.items():
        results.add(f"{name}, {backend}", "ms", spread([1e3 * t for t in times]))
    if "reference" in seconds:
        for backend in (b for b in seconds if b != "reference"):
            gain = ratio(seconds[backend], seconds["reference"])
            results.add(f"{name}, {backend} over reference", "x", gain)
    return len(laps) == len(names)


def pass_both_ways(op: Callable, inputs: list[Tensor], backend: str) -> list[Tensor]:
    """Outputs, and the gradients of all inputs for a loss on y and on the final state."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = op(*leaves, backend=backend)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(x) for x in outputs])]
