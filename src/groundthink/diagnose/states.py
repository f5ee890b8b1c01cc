"""The state columns of a training log."""

from __future__ import annotations

import math
from collections import deque
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.diagnose.balance import output_rms, patterns, shares
from groundthink.diagnose.components import branches, parallel, ratio
from groundthink.diagnose.tape import Tape, tape
from groundthink.layers.state import State

PARTS = {"rwkv6": "wkv", "mamba2": "ssm"}
"""The matrix state of each branch."""
COLUMNS = {"rwkv6": "rwkv_state", "mamba2": "mamba_state"}
WINDOW = 10
"""Observations that the norm stability looks back on."""


Matrices = dict[str, Tensor]
"""Module name -> matrix state [B, H, ., .]."""


def matrices(state: State) -> Matrices:
    """The matrix states of a state tree in fp32 or wider, by the module that owns them."""
    wanted = tuple(f"{module}.{part}" for module, part in PARTS.items())
    return {
        name.rpartition(".")[0]: x.to(torch.promote_types(x.dtype, torch.float32))
        for name, x in state.items()
        if name.endswith(wanted)
    }


class States:
    """Observer of the recurrent states every `every` steps (definitions: J13, type B), beside the
    ratio of the branches' output activations (type A).

    Reads the last forward pass of the observed step: the state after its last token.
    """

    def __init__(self, every: int):
        self.every = every
        self._before: list[Tensor] = []
        self._norms: deque[Tensor] = deque(maxlen=WINDOW)

    def start(self, model: nn.Module) -> None:
        """Begin to record a step."""
        self._open = ExitStack()
        names = ("blocks.*", *patterns(model))
        self._tape: Tape = self._open.enter_context(tape(model, *names, keep=1))

    @torch.no_grad()
    def finish(self, model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        """The "states" record of the step."""
        self._open.close()
        if not branches(model):
            return []
        blocks = model.get_submodule("blocks").named_children()
        state = State([self._tape[f"blocks.{i}"][0].output[1] for i, _ in blocks]).clone()
        parts = {name: state.part(name, PARTS[name]) for name in branches(model)}
        every_part = [x for layers in parts.values() for x in layers]
        norms = {name: mean([norm(x) for x in layers]) for name, layers in parts.items()}
        fields: dict[str, Any] = {f"{COLUMNS[name]}_norm": value for name, value in norms.items()}
        for name, layers in parts.items():
            fields[f"{COLUMNS[name]}_var"] = mean([x.var() for x in layers])
        fields["state_ratio"] = ratio(norms)
        fields["state_entropy"] = mean([entropy(x) for x in every_part])
        fields["update_magnitude"] = self._update(every_part)
        fields["norm_stability"] = self._stability(every_part)
        if parallel(model):
            outputs = {name: known_mean(output_rms(model, self._tape, name)) for name in parts}
            fields["activation_ratio"] = ratio(outputs)
            fields["gate"] = known_mean(shares(model, self._tape)[0])
        return [("states", fields)]

    def _update(self, now: list[Tensor]) -> float | None:
        before, self._before = self._before, now
        if [x.shape for x in before] != [x.shape for x in now]:
            return None
        return mean([(x - y).norm() / y.norm() for x, y in zip(now, before, strict=True)])

    def _stability(self, now: list[Tensor]) -> float | None:
        self._norms.append(torch.stack([norm(x) for x in now]))
        if len(self._norms) < 2:
            return None
        window = torch.stack(list(self._norms))
        return float((window.std(dim=0) / window.mean(dim=0)).mean())


def norm(state: Tensor) -> Tensor:
    """Frobenius norm of the state of one layer [B, H, ., .], mean over the batch."""
    return state.flatten(1).norm(dim=1).mean()


def entropy(state: Tensor) -> Tensor:
    """Entropy of s^2 / sum s^2 over the n entries of one layer's state, over ln n; mean over the
    batch. It is 1 if all entries are of one size and does not depend on scale."""
    energy = state.flatten(1).float().square()
    p = energy / energy.sum(dim=1, keepdim=True)
    return torch.special.entr(p).sum(dim=1).mean() / math.log(p.shape[1])


def mean(values: list[Tensor]) -> float:
    """Mean of scalars, as a number."""
    return float(torch.stack(values).mean())


def known_mean(values: list[float | None]) -> float:
    """Mean of the layers that have a value."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
