"""The state columns of a training log."""

from __future__ import annotations

import math
from collections import deque
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.diagnose.balance import mean_gate, output_rms, patterns
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
        state = State([self._tape[f"blocks.{i}"][0].output[1] for i, _ in blocks])
        now = {name: torch.stack(state.part(name, PARTS[name])) for name in branches(model)}
        norms = {name: norm(x) for name, x in now.items()}
        found = {f"{COLUMNS[name]}_norm": x.mean() for name, x in norms.items()}
        for name, x in now.items():
            found[f"{COLUMNS[name]}_var"] = x.flatten(1).var(dim=1).mean()
        found["state_entropy"] = torch.cat([entropy(x) for x in now.values()]).mean()
        found["hidden_entropy"] = hidden_entropy(self._mixed())
        fields: dict[str, Any] = dict.fromkeys(("update_magnitude", "norm_stability"))
        found |= self._moved(now, torch.cat(list(norms.values())))
        fields |= dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))
        fields["state_ratio"] = ratio({name: fields[f"{COLUMNS[name]}_norm"] for name in now})
        if parallel(model):
            outputs = {name: known_mean(output_rms(model, self._tape, name)) for name in now}
            fields["activation_ratio"] = ratio(outputs)
            fields["gate"] = mean_gate(model, self._tape)
        return [("states", fields)]

    def _mixed(self) -> Tensor:
        """What the mixers of the last layer that has one gave, in all [B, T, C]."""
        mixers = [name for name in self._tape if name.count(".") > 1]
        last = mixers[-1].rpartition(".")[0]
        outputs = [self._tape[name][0].output[0] for name in mixers if name.startswith(f"{last}.")]
        return torch.stack(outputs).sum(0)

    def _moved(self, now: dict[str, Tensor], norms: Tensor) -> dict[str, Tensor]:
        """How far the states are from those of the last observation, relative to them, and how
        their norms vary over the last few; nothing where there is none to compare with."""
        before, self._before = self._before, list(now.values())
        self._norms.append(norms)
        found = {}
        if [x.shape for x in before] == [x.shape for x in now.values()]:
            pairs = zip(now.values(), before, strict=True)
            moves = [(x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1) for x, y in pairs]
            found["update_magnitude"] = torch.cat(moves).mean()
        if len(self._norms) > 1:
            window = torch.stack(list(self._norms))
            found["norm_stability"] = (window.std(dim=0) / window.mean(dim=0)).mean()
        return found


def norm(states: Tensor) -> Tensor:
    """Frobenius norm of the state of every layer, mean over the batch: [L, B, H, ., .] -> [L]."""
    return states.flatten(2).norm(dim=2).mean(1)


def entropy(states: Tensor) -> Tensor:
    """Entropy of s^2 / sum s^2 over the n entries of every layer's state, over ln n; mean over the
    batch [L, B, H, ., .] -> [L]. It is 1 if all entries are of one size and does not depend on
    scale."""
    energy = states.flatten(2).float().square()
    p = energy / energy.sum(dim=2, keepdim=True)
    return torch.special.entr(p).sum(dim=2).mean(1) / math.log(p.shape[2])


def hidden_entropy(x: Tensor) -> Tensor:
    """Entropy of softmax(x) over the C channels, over ln C, mean over tokens [B, T, C]: 1 if no
    channel stands out."""
    return torch.special.entr(x.float().softmax(-1)).sum(-1).mean() / math.log(x.shape[-1])


def known_mean(values: list[float | None]) -> float:
    """Mean of the layers that have a value."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
