"""Balance of the two branches while the model trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.diagnose.components import branches, grad_rms, parallel, ratio
from groundthink.diagnose.tape import Tape, tape
from groundthink.models.hybrid import Block

Layers = list[float | None]
"""One number a layer; None where the layer has none."""


class Balance:
    """Observer of gradient, gate, output and share of each branch every `every` steps.

    Reads the last forward pass of the observed step. R is RWKV-6, M is Mamba-2. A gradient ratio
    is no contribution: it says which branch is being moved.
    """

    def __init__(self, every: int):
        self.every = every

    def start(self, model: nn.Module) -> None:
        """Begin to record a step."""
        self._open = ExitStack()
        self._tape: Tape = self._open.enter_context(tape(model, *patterns(model), keep=1))

    @torch.no_grad()
    def finish(self, model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        """The "balance" record of the step, while its gradients are present."""
        self._open.close()
        rms = grad_rms(model)
        fields: dict[str, Any] = {"grad_rms": rms, "grad_ratio": ratio(rms)}
        fields["branch_rms"] = {
            name: output_rms(model, self._tape, name) for name in branches(model)
        }
        if parallel(model):
            fields["gate"], fields["share"] = shares(model, self._tape)
        return [("balance", fields)]


def patterns(model: nn.Module) -> list[str]:
    """What to tape: the branches. Not the fusion, which runs in one pass while nobody listens."""
    return [f"blocks.*.{name}" for name in branches(model)]


def output_rms(model: nn.Module, calls: Tape, name: str) -> Layers:
    """Root mean square of the raw output of one branch in each layer."""
    values = {
        where: call.output[0].float().square().mean().sqrt()
        for where, (call,) in calls.items()
        if where.endswith(f".{name}")
    }
    return by_layer(model, values)


def shares(model: nn.Module, calls: Tape) -> tuple[Layers, Layers]:
    """Mean gate (or share, where a fusion has no gate) and effective share of RWKV in each layer.

    The effective share is ||r_part|| / (||r_part|| + ||m_part||), the norms of what is added.
    """
    gates, effective = {}, {}
    for where, block, outputs in fused(model, calls):
        gates[where] = block.fusion.share(*outputs)
        r, m = (part.float().norm() for part in block.fusion.parts(*outputs))
        effective[where] = r / (r + m)
    return by_layer(model, gates), by_layer(model, effective)


def mean_gate(model: nn.Module, calls: Tape) -> float:
    """Mean over layers of the gate, or of the share of RWKV where a fusion has none."""
    gates = [block.fusion.share(*outputs) for _, block, outputs in fused(model, calls)]
    return float(torch.stack(gates).mean())


def fused(model: nn.Module, calls: Tape) -> Iterator[tuple[str, Block, tuple[Tensor, Tensor]]]:
    """Name, block, and normed outputs of both branches, of every block that fuses two."""
    for where, block in model.get_submodule("blocks").named_children():
        if isinstance(block, Block) and block.parallel:
            outputs = (calls[f"blocks.{where}.{name}"][0].output[0] for name in block.mixers)
            full = block.norm1.weight.dtype  # of the weights: the outputs may come from autocast
            r, m = (output.to(full) for output in outputs)
            yield f"blocks.{where}", block, block.normed(r, m)


def by_layer(model: nn.Module, values: dict[str, Tensor]) -> Layers:
    """Scalars by module name -> one entry a block, fetched from the device at once."""
    layers: Layers = [None] * len(list(model.get_submodule("blocks").children()))
    if values:
        numbers = torch.stack(list(values.values())).tolist()
        for where, number in zip(values, numbers, strict=True):
            layers[int(where.split(".")[1])] = number
    return layers
