"""How each layer mixes its two branches: gates, and whose output the sum is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor

from groundthink.diagnose.components import parallel
from groundthink.diagnose.probes.ablation import parts
from groundthink.diagnose.probes.arms import layer_of
from groundthink.diagnose.tape import Tape, tape
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import Paired

CLOSED, OPEN = 0.01, 0.99
"""A gate beyond them is saturated: it hardly passes a gradient."""


@contextmanager
def fusions(model: LanguageModel) -> Iterator[Tape]:
    """The last call of every fusion, if the model has any."""
    if not parallel(model):
        yield {}
        return
    with tape(model, "blocks.*.fusion", keep=1) as calls:
        yield calls


def quantities(model: LanguageModel, calls: Tape) -> Iterator[tuple[tuple[str, int], Tensor]]:
    """(name, layer) and one number for each row [B] of what `mixing` is computed from."""
    for name, (call,) in calls.items():
        layer = layer_of(name)
        block: Any = model.blocks[layer]
        r, m = parts(block, *call.inputs).values()
        yield ("product", layer), (r * (r + m)).flatten(1).sum(1)
        yield ("square", layer), (r + m).square().flatten(1).sum(1)
        if hasattr(block.fusion, "gate"):
            gate = block.fusion.gate(*call.inputs).float().flatten(1)
            yield ("gate", layer), gate.mean(1)
            yield ("gate square", layer), gate.square().mean(1)
            yield ("saturated", layer), ((gate < CLOSED) | (gate > OPEN)).float().mean(1)


def mixing(paired: Paired) -> list[dict[str, Any]]:
    """Record fields of every layer that fuses two branches.

    share: <y_R, y> / <y, y>, the part of the sum y = y_R + y_M that RWKV-6 makes; below 0 or
    above 1 where the branches work against each other. gate: mean, with sd over tokens (and
    channels) and the saturated share; None where the fusion has none.
    """
    layers = sorted(layer for name, layer in _named(paired.means) if name == "product")
    return [{"layer": layer, **_of_layer(paired, layer)} for layer in layers]


def _named(means: Mapping[Any, float]) -> list[tuple[str, int]]:
    return [key for key in means if isinstance(key, tuple)]


def _of_layer(paired: Paired, layer: int) -> dict[str, Any]:
    share = paired.interval(lambda m: m["product", layer] / m["square", layer])
    gate = None
    if ("gate", layer) in paired.means:
        mean = paired.means["gate", layer]
        variance = paired.means["gate square", layer] - mean**2
        gate = asdict(paired.interval(lambda m: m["gate", layer]))
        gate |= {"sd": max(0.0, variance) ** 0.5, "saturated": paired.means["saturated", layer]}
    return {"share": asdict(share), "gate": gate}
