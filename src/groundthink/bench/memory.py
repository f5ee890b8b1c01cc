"""B2: the largest memory that training and inference take, each in a fresh process.

On the CPU it is resident memory as the operating system counts it, which holds what torch's
allocator does not see: its own waste and the scratch space of the math libraries.
On a GPU it is what torch has allocated.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from groundthink import config as configs
from groundthink.bench import contestants, work
from groundthink.bench.config import BenchModel
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


def parts(name: str, training: bool, config: BenchModel) -> dict[str, int]:
    """Bytes of parameters, gradients, optimizer state, the rest, and the peak, their sum.

    The peak is that of two steps; the rest is activations and scratch space. Meant for a fresh
    process (`measure`).
    """
    device = pick_device(config.device)
    model = contestants.make(name, config, device)
    batch = work.random_batch(config.vocab_size, config.batch_size, config.seq_len, device)
    if training:
        run = work.Training(model, device, config.precision)
        growth = peak(lambda: (run.step(batch), run.step(batch)), device)
        gradients = nbytes(p.grad for p in model.parameters())
        moments = nbytes(x for state in run.optimizer.state.values() for x in state.values())
        found = {"gradients": gradients, "optimizer": moments}
    else:
        lap = work.inference_lap(model, batch, device, config.precision)
        growth, found = peak(lambda: (lap(), lap()), device), {}
    parameters = nbytes(model.parameters())
    rest = growth - sum(found.values())
    return {"parameters": parameters, **found, "rest": rest, "peak": parameters + growth}


def nbytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes that tensors hold."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def measure(name: str, training: bool, config: BenchModel) -> dict[str, float]:
    """`parts` in MiB, found in a process of its own.

    Raises:
        UserError: the process failed; its last line says why.
    """
    request = json.dumps([name, training, configs.to_dict(config)])
    done = subprocess.run([sys.executable, "-m", __name__, request], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"B2 of {name}: {done.stderr.strip().splitlines()[-1]}")
    return {part: n / MIB for part, n in json.loads(done.stdout.splitlines()[-1]).items()}


def record(name: str, training: bool, config: BenchModel) -> tuple[dict[str, float], str]:
    """Fields of a record of `measure`, and the parts in words."""
    found = measure(name, training, config)
    words = ", ".join(f"{part} {mib:.1f}" for part, mib in found.items() if part != "peak")
    return found | {"value": found["peak"], "n": 1}, words


def answer(request: str) -> None:
    """What the fresh process does: print the parts as JSON."""
    name, training, values = json.loads(request)
    config = configs.from_dict(BenchModel, values)
    if config.threads:
        torch.set_num_threads(config.threads)
    print(json.dumps(parts(name, training, config)))


if __name__ == "__main__":
    answer(sys.argv[1])
