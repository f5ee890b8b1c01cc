"""B2: the largest memory that training and inference take, and the time to the first step.

Each in a fresh process; training in one that compiles into empty caches, as on a new machine.
On the CPU it is resident memory as the operating system counts it, which holds what torch's
allocator does not see: its own waste and the scratch space of the math libraries.
On a GPU it is what torch has allocated.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from groundthink import config as configs
from groundthink.bench import contestants, gpu, work
from groundthink.bench.config import BenchModel
from groundthink.bench.work import MakeStep
from groundthink.device import pick_device
from groundthink.errors import UserError

MIB = 2**20
PROCESS = Path("/proc/self")


def peak(action: Callable[[], object], device: torch.device) -> int:
    """Bytes by which an action exceeds, at its highest, what was held before it.

    On the CPU this means something only in a process that has not freed much before: memory that
    it kept is used again unseen. Pages of program files do not count.

    Raises:
        UserError: the CPU memory of a system without /proc.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if not (PROCESS / "clear_refs").exists():
        raise UserError("B2 on the CPU reads /proc, which only Linux has")
    (PROCESS / "clear_refs").write_text("5")  # the high-water mark falls to the present size
    before = _resident("RssAnon")
    action()
    return _resident("VmHWM") - _resident("RssFile") - before


def _resident(field: str) -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise UserError(f"B2 on the CPU reads {field} in /proc/self/status, which is not there")


def parts(
    name: str, training: bool, config: BenchModel, make_step: MakeStep
) -> tuple[dict[str, int], float]:
    """Bytes of parameters, gradients, optimizer state, the rest, and the peak, their sum; and the
    seconds that the first step or pass took.

    The peak is that of two steps; the rest is activations and scratch space. Meant for a fresh
    process (`measure`).
    """
    device = pick_device(config.device)
    model = contestants.make(name, config, device)
    batch = work.random_batch(config.vocab_size, config.batch_size, config.seq_len)
    step = make_step(model, device, config.precision) if training else None
    lap = (
        work.training_lap(step, batch, device)
        if step
        else work.inference_lap(model, batch, device, config.precision)
    )
    start = time.perf_counter()
    first: list[float] = []

    def twice() -> None:
        lap()
        first.append(time.perf_counter() - start)
        lap()

    growth, found = peak(twice, device), {}
    if step:
        moments = nbytes(x for state in step.optimizer.state.values() for x in state.values())
        found = {"gradients": nbytes(p.grad for p in model.parameters()), "optimizer": moments}
    parameters = nbytes(model.parameters())
    rest = growth - sum(found.values())
    sizes = {"parameters": parameters, **found, "rest": rest, "peak": parameters + growth}
    return sizes, first[0]


def nbytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes that tensors hold."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def measure(name: str, training: bool, config: BenchModel, make_step: MakeStep) -> dict[str, float]:
    """`parts` in MiB and `first_s`, found in a process of its own.

    Args:
        make_step: a class or function of a module, which that process imports.

    Raises:
        UserError: the process failed; its last line says why.
    """
    maker = f"{make_step.__module__}:{make_step.__qualname__}"  # pyright: ignore
    request = json.dumps([name, training, configs.to_dict(config), maker])
    done = subprocess.run([sys.executable, "-m", __name__, request], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"B2 of {name}: {done.stderr.strip().splitlines()[-1]}")
    sizes, first = json.loads(done.stdout.splitlines()[-1])
    return {part: n / MIB for part, n in sizes.items()} | {"first_s": first}


def record(
    name: str, training: bool, config: BenchModel, make_step: MakeStep
) -> tuple[dict[str, float], str]:
    """Fields of a record of `measure`, and the parts in words."""
    found = measure(name, training, config, make_step)
    sizes = (f"{part} {mib:.1f}" for part, mib in found.items() if part not in ("peak", "first_s"))
    words = ", ".join(sizes) + (f"; first step {found['first_s']:.1f} s" if training else "")
    return found | {"value": found["peak"], "n": 1}, words


def answer(request: str) -> None:
    """What the fresh process does: print the parts as JSON."""
    name, training, values, maker = json.loads(request)
    config = configs.from_dict(BenchModel, values)
    if config.threads:
        torch.set_num_threads(config.threads)
    module, _, function = maker.partition(":")
    make_step = getattr(import_module(module), function)
    with gpu.empty_caches() if training else nullcontext():
        print(json.dumps(parts(name, training, config, make_step)))


if __name__ == "__main__":
    answer(sys.argv[1])
