"""The loss of a model with some of its branches cut: one arm for each set, place, site and mode.

Modes, by what stands in for a part (letters of the parts: `ablation.Replace`):

- zero: nothing.
- mean: its mean at the same position over other documents.
- resample: itself at the same position of another document, in the model as it is.
- optimal: the constant that hurts least, fitted on other documents (Li and Janson 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn

from groundthink.diagnose.losses import token_losses
from groundthink.diagnose.probes.ablation import Cut, Replace, ablated, swapped
from groundthink.diagnose.tape import tape
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel

MODES = ("zero", "mean", "resample", "optimal")
BATCH = 16
"""Rows in one forward pass."""

Branches = tuple[str, ...]
Key = tuple[str, str]
"""Site and dotted name of a part."""


@dataclass(frozen=True)
class Arm:
    """A model with one set of branches cut."""

    scope: str
    """"all" layers, one "layer", or a "prefix": all layers up to and including one."""
    layer: int
    """The one or last layer of the scope."""
    site: str
    mode: str
    active: Branches
    """The branches that are left."""

    @property
    def first(self) -> int:
        """The first layer of the scope."""
        return self.layer if self.scope == "layer" else 0

    def covers(self, layer: int) -> bool:
        return layer == self.layer if self.scope == "layer" else layer <= self.layer


@dataclass
class StandIns:
    """What replaces a part, by mode; parts are known by site and name."""

    mean: dict[Key, Tensor] = field(default_factory=dict)
    """Mean over documents, [T, ...] or a state [...]."""
    optimal: dict[tuple[str, Branches, str], Tensor] = field(default_factory=dict)
    """One constant for each set of active branches."""
    clean: dict[Key, Tensor] = field(default_factory=dict)
    """The parts of the batch at hand in the model as it is, [B, ...]."""
    mixed: dict[str, Tensor] = field(default_factory=dict)
    """What its mixers gave, [B, T, C]."""

    def of(self, arm: Arm, name: str, part: Tensor) -> Tensor:
        """The stand-in for a part in an arm."""
        if arm.mode == "zero":
            return torch.zeros_like(part)
        if arm.mode == "mean":
            return self.mean[arm.site, name].expand_as(part)
        if arm.mode == "resample":
            return self.clean[arm.site, name].roll(1, 0)
        return self.optimal[arm.site, arm.active, name].expand_as(part)


def subsets(branches: Branches) -> list[Branches]:
    """Every set of branches that lacks at least one, the largest first."""
    sizes = range(len(branches) - 1, -1, -1)
    return [chosen for size in sizes for chosen in combinations(branches, size)]


def layer_of(name: str) -> int:
    """Index of the block in a dotted name."""
    return int(name.split(".")[1])


def branch_of(name: str) -> str:
    """The branch in a dotted name."""
    return name.split(".")[2]


def cuts(branches: Branches, site: str, replace: Replace) -> list[Cut]:
    """`replace` at one site of every branch."""
    return [Cut(branch, site, replace) for branch in branches]


def stream(
    model: LanguageModel, x: Tensor, state: State | None = None, first: int = 0
) -> list[Tensor]:
    """Inputs of the blocks from `first` on, and the output of the last, [B, T, C] each."""
    inputs = [x]
    for i, block in enumerate(model.blocks):
        if i >= first:
            inputs.append(block(inputs[-1], state and state.layers[i], None)[0])
    return inputs


def row_losses(model: LanguageModel, x: Tensor, tokens: Tensor) -> Tensor:
    """Mean loss in nats of the tokens of each row after the first, [B], from the output of the last
    block [B, T, C]."""
    return token_losses(model, model.norm(x[:, :-1]), tokens[:, 1:]).mean(1)


def grouped(
    model: LanguageModel, tokens: Tensor, sites: Sequence[str], at: int
) -> Iterator[tuple[tuple[str, ...], State | None, Tensor]]:
    """The sites that one pass serves, with the state before it and the input of its first block:
    branches lose their memory before the token `at`, and the rest in all of the text."""
    x = embedded(model, tokens)
    if whole := tuple(site for site in sites if site != "memory"):
        yield whole, None, x
    if "memory" in sites:
        yield ("memory",), model.features(tokens[:, :at])[1], x[:, at:]


class _Reached(Exception):
    pass


def embedded(model: LanguageModel, tokens: Tensor) -> Tensor:
    """The input of the first block, [B, T, C]; no block runs."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])
        raise _Reached

    handle = model.blocks[0].register_forward_pre_hook(catch)
    try:
        with suppress(_Reached):
            model.features(tokens)
    finally:
        handle.remove()
    return caught[0]


def recorder(store: dict[Key, Tensor], site: str) -> Replace:
    """Replaces parts by themselves and keeps them."""

    def replace(name: str, part: Tensor) -> Tensor:
        store[site, name] = part
        return part

    return replace


def replacer(arm: Arm, doubles: StandIns) -> Replace:
    """Replaces what the arm cuts, and everything else by itself."""

    def replace(name: str, part: Tensor) -> Tensor:
        if arm.covers(layer_of(name)) and branch_of(name) not in arm.active:
            return doubles.of(arm, name, part)
        return part

    return replace


def record(
    model: LanguageModel,
    x: Tensor,
    state: State | None,
    branches: Branches,
    sites: Sequence[str],
    doubles: StandIns,
) -> list[Tensor]:
    """The stream of the model as it is; its parts at the sites become the clean ones."""
    every = [cut for s in sites for cut in cuts(branches, s, recorder(doubles.clean, s))]
    with ablated(model, *every), tape(model, *(f"blocks.*.{name}" for name in branches)) as calls:
        whole = stream(model, x, state)
    doubles.mixed = {name: call.output[0] for name, (call,) in calls.items()}
    return whole


def run(
    model: LanguageModel,
    x: Tensor,
    state: State | None,
    arm: Arm,
    branches: Branches,
    doubles: StandIns,
) -> list[Tensor]:
    """The stream of an arm from its first layer on, where `x` comes in as it was."""
    with ExitStack() as stack:
        for name, y in doubles.mixed.items() if arm.site == "output" else ():
            if layer_of(name) == arm.first:  # its mixers read what they read before
                mixer = model.get_submodule(name)
                stack.enter_context(swapped(mixer, "forward", lambda *_, y=y: (y, {})))
        stack.enter_context(ablated(model, *cuts(branches, arm.site, replacer(arm, doubles))))
        return stream(model, x, state, arm.first)


def means(
    model: LanguageModel, tokens: Tensor, branches: Branches, sites: Sequence[str], at: int
) -> dict[Key, Tensor]:
    """Mean of every part over the rows of `tokens` [R, T], position by position; of the memory,
    before the token `at`."""
    total: dict[Key, Tensor] = {}
    for rows in tokens.split(BATCH):
        doubles = StandIns()
        for group, state, piece in grouped(model, rows, sites, at):
            record(model, piece, state, branches, group, doubles)
        for key, part in doubles.clean.items():
            total[key] = total.get(key, 0) + part.sum(0) / len(tokens)
    return total
