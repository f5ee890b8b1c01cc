"""`groundthink bench model`: a bench times the very step of `groundthink train`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from groundthink.bench.config import BenchModel
from groundthink.train.config import TrainConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from groundthink.data.stream import Batch

ASKING = ("reference", "chunked")
"""Backends that may ask the host in between, which a CUDA graph cannot record."""


class Training:
    """Steps of `groundthink train` on one model, at a constant learning rate."""

    config = TrainConfig(lr=1e-3, schedule="constant", warmup_steps=0)

    def __init__(self, model: nn.Module, device: torch.device, precision: str):
        from dataclasses import replace

        from groundthink.models.base import LanguageModel
        from groundthink.train.step import Stepper

        backends = {getattr(module, "backend", "auto") for module in model.modules()}
        graph = isinstance(model, LanguageModel) and not backends.intersection(ASKING)
        compiled = any(module._compiled_call_impl for module in model.modules())
        config = replace(self.config, precision=precision, cuda_graph=graph, compile=compiled)
        self.stepper = Stepper(model, config, device, carry=model.recurrent)  # pyright: ignore
        self.optimizer = self.stepper.optimizer
        self.steps = 0

    def __call__(self, batch: Batch) -> tuple[float, float]:
        """Loss in nats per token and gradient norm before clipping; NaN where not finite."""
        from groundthink.train.step import NonFinite

        self.steps += 1
        try:
            outcome = self.stepper.step(self.steps, [batch])
        except NonFinite:
            return math.nan, math.nan
        return outcome.loss, outcome.grad_norm


def model(config: BenchModel) -> int:
    """Measure a model; the exit code."""
    from groundthink.bench.model import run

    return run(config, Training)
