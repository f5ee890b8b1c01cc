"""What only a GPU has: recorded graphs, launches, event times, copies, registers of kernels."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Variables that name the folders in which compiled kernels are kept."""
SCRATCH = 1 << 28
"""Bytes written to empty the cache of a GPU; larger than any."""
COPIED = 1 << 30
"""Bytes copied to measure the bandwidth."""


def graphed(action: Callable[[], object]) -> Callable[[], None]:
    """An action as a recorded CUDA graph: what a call of the result replays.

    Raises:
        RuntimeError: the action does something that cannot be recorded.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def event_seconds(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that the device worked on an action, from a cold second-level cache."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _scratch(device).zero_()
    start.record()
    action()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@functools.cache
def _scratch(device: torch.device) -> torch.Tensor:
    return torch.empty(SCRATCH, dtype=torch.uint8, device=device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    laps = [event_seconds(lambda: target.copy_(source), device) for _ in range(12)]
    return 2 * COPIED / sorted(laps[2:])[5]


def launches(action: Callable[[], object]) -> int:
    """Kernels that an action starts; fills and copies by the driver do not count."""
    from torch.profiler import ProfilerActivity, profile

    action()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        action()
        torch.cuda.synchronize()
    ours = (e.name for e in trace.events() or () if e.device_type.name == "CUDA")
    return sum(not name.startswith(("Mem", "Optimizer.", "ProfilerStep")) for name in ours)


@contextlib.contextmanager
def empty_caches() -> Iterator[None]:
    """Compile into folders that start empty and are gone afterwards."""
    before = {name: os.environ.get(name) for name in CACHES}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ.update({name: os.path.join(folder, name) for name in CACHES})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def registers() -> list[dict[str, Any]]:
    """What every form of our Triton kernels that has run here takes of a multiprocessor.

    Returns:
        kernel, registers and spilled registers of a thread, warps, and bytes of shared memory.
    """
    from groundthink.ops.launching import Kernel

    found = []
    for path in sorted(name for name in sys.modules if name.startswith("groundthink.ops.")):
        module = sys.modules[path]
        kernels = [k.function for k in vars(module).values() if isinstance(k, Kernel)]
        for kernel in (k for k in kernels if k.__module__ == path):
            for compiled in {id(c): c for c in _forms(kernel)}.values():
                found.append(
                    {
                        "kernel": f"{path.split('.')[2]} {kernel.__name__.strip('_')}",
                        "registers": compiled.n_regs,
                        "spills": compiled.n_spills,
                        "warps": compiled.metadata.num_warps,
                        "shared": compiled.metadata.shared,
                    }
                )
    return found


def _forms(kernel: Any) -> Iterator[Any]:
    """Compiled forms of a kernel that have been launched."""
    for cache, *_ in kernel.device_caches.values():
        yield from (form for form in cache.values() if getattr(form, "n_regs", None))
