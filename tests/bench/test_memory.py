from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from groundthink.bench import memory
from groundthink.bench.config import BenchModel
from groundthink.errors import UserError
from groundthink.lab.benching import Training

linux = pytest.mark.skipif(not memory.PROCESS.exists(), reason="reads /proc")

ALLOCATE = """
import torch
from groundthink.bench.memory import peak
cpu = torch.device("cpu")
print(peak(lambda: torch.ones(1 << 24).sum().item(), cpu), peak(lambda: None, cpu))
"""


@linux
@pytest.mark.slow
def test_an_allocation_that_is_freed_again_counts_in_full():
    out = subprocess.check_output([sys.executable, "-c", ALLOCATE], text=True)
    allocated, nothing = map(int, out.split())
    # The array starts and ends within a page, or a 2 MiB huge page where the system has them,
    # and the thread that sums it needs a stack.
    assert abs(allocated - (64 << 20)) < 4 << 20
    assert abs(nothing) < 1 << 20


@linux
@pytest.mark.slow
def test_the_parts_of_a_training_step_add_up(bench: BenchModel):
    large = replace(bench, batch_size=8, seq_len=128)  # memory that was freed before is used unseen
    found = memory.measure(bench.model, True, large, Training)
    assert found.pop("first_s") > 0
    assert found["peak"] == pytest.approx(sum(found.values()) - found["peak"])
    assert found["gradients"] == found["parameters"] > 0
    # two moments a weight, and a step counter of four bytes for each tensor
    assert found["optimizer"] == pytest.approx(2 * found["parameters"], rel=0.05)
    assert found["rest"] > 0


@pytest.mark.slow
def test_a_process_that_fails_says_why_in_one_line(bench: BenchModel):
    with pytest.raises(UserError, match="^B2 of no-such-model: .*unknown model") as caught:
        memory.measure("no-such-model", False, bench, Training)
    assert "\n" not in str(caught.value)
