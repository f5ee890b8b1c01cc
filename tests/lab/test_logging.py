"""What it costs to log balance and states while training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from groundthink.data.stream import Batch
from groundthink.diagnose.balance import Balance
from groundthink.diagnose.states import States
from groundthink.models.build import build
from groundthink.train.config import TrainConfig
from groundthink.train.step import Stepper

EVERY = 100
"""Steps between two observed ones."""


def cost(device: torch.device, rows: int, length: int, laps: int, clock: Callable[[], float]):
    """Share of the time of training that observing every `EVERY` steps takes: an observed step and
    a plain one in turns."""
    model = build("gf-mh-5m", vocab_size=256, device=str(device))
    stepper = Stepper(model, TrainConfig(warmup_steps=0), device, True)
    tokens = torch.randint(256, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros(rows, length, dtype=torch.bool))
    observers = [Balance(EVERY), States(EVERY)]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(1, 2 * laps + 5):
        observed = number % 2 == 0
        start = clock()
        stepper.step(number, [batch], observers if observed else ())
        if number > 4:  # compiled and recorded by then
            seconds[observed].append(clock() - start)
    plain = statistics.median(seconds[False])
    return (statistics.median(seconds[True]) - plain) / (EVERY * plain)


@pytest.mark.slow
def test_logging_every_hundred_steps_costs_less_than_a_twentieth():
    c = cost(torch.device("cpu"), 4, 128, 5, time.process_time)
    print("COST", c)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_logging_costs_less_than_a_twentieth_of_recorded_steps():
    assert cost(torch.device("cuda"), 64, 256, 20, time.perf_counter) < 0.05
