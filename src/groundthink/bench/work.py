"""The work that is timed: a training step and a forward pass."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from groundthink.bench.measure import Lap, stopwatch
from groundthink.data.stream import Batch


class Step(Protocol):
    """One optimizer step of training; a recurrent model carries its detached state on."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Whose state counts as memory."""
        ...

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Loss in nats per token, and the norm of the whole gradient before clipping."""
        ...


class MakeStep(Protocol):
    """What makes a step; a bench is handed the one of `groundthink train`."""

    def __call__(self, model: nn.Module, device: torch.device, precision: str) -> Step: ...


def random_batch(vocab_size: int, batch: int, length: int) -> Batch:
    """Random tokens and the ones after them, with one document boundary, as text has it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (batch, length + 1), generator=generator)
    reset = torch.zeros(batch, length, dtype=torch.bool)
    reset[0, length // 2] = True
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), reset)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of fp32, bf16 or fp16; that of fp32 does nothing."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def training_lap(step: Step, batch: Batch, device: torch.device) -> Lap:
    """One optimizer step a lap, with the way of the batch to the device."""
    return lambda: stopwatch(lambda: step(batch), device)


def inference_lap(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> Lap:
    """One forward pass without gradients a lap."""
    tokens = batch.tokens.to(device)

    def forward() -> None:
        with torch.no_grad(), autocast(device, precision):
            model(tokens)

    return lambda: stopwatch(forward, device)
