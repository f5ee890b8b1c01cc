"""A walk over texts that stops at single tokens and takes every recurrence apart there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from groundthink.diagnose import measures
from groundthink.diagnose.components import branches
from groundthink.diagnose.probes.information import SHARD
from groundthink.diagnose.probes.retention import log_decays
from groundthink.diagnose.states import PARTS
from groundthink.diagnose.tape import Call, tape
from groundthink.models.base import LanguageModel

ROWS = 16
"""Texts that are walked over together."""
SPECTRA = 8
"""The first of them, whose singular values are taken: these cost more than all the rest."""
CLOSED, OPEN = 0.01, 0.99
"""A gate outside is saturated."""

Table = dict[str, dict[str, Tensor]]
"""Module -> quantity -> values with the texts first."""


class Stop(NamedTuple):
    """One recurrence at one token, S_t = A_t S_{t-1} + W_t; B texts, H heads.

    Matrices are [B, H, K, V] in RWKV-6 and [B, H, P, N] in Mamba-2.
    """

    before: Tensor
    """S_{t-1}."""
    after: Tensor
    """S_t."""
    kept: Tensor
    """A_t S_{t-1}."""
    written: Tensor
    """W_t."""
    output: Tensor
    """What the branch gave for this token [B, 1, C]."""


def walk(
    model: LanguageModel, texts: Tensor, stops: Sequence[int]
) -> Iterator[tuple[dict[str, Stop], dict[str, Call]]]:
    """Read `texts` [B, T] in one piece between the stops and the token at each stop alone.

    Yields:
        At each stop t > 1 (tokens read) the recurrences at token t by module, and the calls of all
        branches and gates for the tokens between the stops.
    """
    patterns = [f"blocks.*.{branch}" for branch in branches(model)]
    patterns += [f"{block}.fusion.gate" for block in gated(model)]
    state, done = None, 0
    for stop in stops:
        with tape(model, *patterns, keep=1) as calls:
            _, state = model.features(texts[:, done : stop - 1], state)
            between = {name: call for name, (call,) in calls.items()}
            _, state = model.features(texts[:, stop - 1 : stop], state)
        mixers = {name: model.get_submodule(name) for name in calls if "fusion" not in name}
        yield {name: take_apart(mixer, calls[name][0]) for name, mixer in mixers.items()}, between
        done = stop


def take_apart(mixer: nn.Module, call: Call) -> Stop:
    """What a mixer kept and wrote in a call with one token."""
    x, carried, _ = call.inputs
    part = next(part for part in PARTS.values() if part in carried)
    before = carried[part]
    decay = log_decays(mixer, x, carried.get("shift")).exp()
    decay = (
        decay.view(*before.shape[:3], 1) if part == "wkv" else decay.view(*before.shape[:2], 1, 1)
    )
    written = mixer(x, {**carried, part: torch.zeros_like(before)})[1][part]
    return Stop(before, call.output[1][part], decay * before, written, call.output[0])


def gated(model: LanguageModel) -> list[str]:
    """Blocks whose fusion has a gate that reads the branches."""
    ending = ".fusion.gate"
    return [name.removesuffix(ending) for name, _ in model.named_modules() if name.endswith(ending)]


def observe(model: LanguageModel, texts: Tensor, stops: Sequence[int]) -> Table:
    """Measure every recurrence at every stop, and the gates, on texts [N, T].

    Of a text only numbers are kept, and of the first `SHARD` also sketches of the states.

    Returns:
        For a branch: rms, turn (cosine with the state at the stop before), shift (relative change
        since then), written, forgotten, output, rank and entropy [texts, stops], the last two of
        the first `SPECTRA` texts; log_decay [texts, channels or heads], mean over tokens; sketch
        [first texts, every second stop, BUCKETS]; apart [pairs of texts]. For a block with a gate:
        gate and saturated [texts].
    """
    found: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for first in range(0, len(texts), ROWS):
        part = texts[first : first + ROWS]
        for name, columns in _batch(model, part, stops, spectra=first == 0).items():
            for quantity, values in columns.items():
                if quantity != "sketch" or first < SHARD:
                    found[name][quantity].append(values.cpu())
    return {
        name: {quantity: torch.cat(parts) for quantity, parts in columns.items()}
        for name, columns in found.items()
    }


def _batch(model: LanguageModel, texts: Tensor, stops: Sequence[int], spectra: bool) -> Table:
    """`observe` of texts that fit in one forward pass."""
    seen: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    gates: dict[str, list[Tensor]] = defaultdict(list)
    last: dict[str, Tensor] = {}
    for index, (here, between) in enumerate(walk(model, texts, stops)):
        for name, stop in here.items():
            columns = measured(stop, last.get(name, stop.before), stops[index], spectra)
            x, carried, _ = between[name].inputs
            mixer, shift = model.get_submodule(name), (carried or {}).get("shift")
            columns["log_decay"] = log_decays(mixer, x, shift).mean(1)
            if index % 2:
                columns["sketch"] = measures.sketch(stop.after)
            for quantity, values in columns.items():
                seen[name][quantity].append(values)
            last[name] = stop.after
        for block in gated(model):
            gates[block].append(between[f"{block}.fusion.gate"].output.float().flatten(1))
    table = {
        name: {q: torch.stack(v, 1) for q, v in columns.items()} for name, columns in seen.items()
    }
    for name, state in last.items():
        table[name]["log_decay"] = table[name]["log_decay"].mean(1)
        even = len(state) // 2 * 2
        table[name]["apart"] = measures.apart(state[0:even:2], state[1:even:2])
    for block, pieces in gates.items():
        gate = torch.cat(pieces, 1)
        saturated = ((gate < CLOSED) | (gate > OPEN)).float().mean(1)
        table[block] = {"gate": gate.mean(1), "saturated": saturated}
    return table


def measured(stop: Stop, last: Tensor, tokens: int, spectra: bool) -> dict[str, Tensor]:
    """The quantities of one recurrence at one stop, [B] each."""
    columns = {
        "rms": measures.rms(stop.after),
        "turn": measures.cosine(last, stop.after),
        "shift": measures.relative(stop.after - last, last),
        "written": measures.relative(stop.written, stop.after),
        "forgotten": measures.relative(stop.before - stop.kept, stop.before),
        "output": stop.output.float().flatten(1).square().mean(1).sqrt(),
    }
    if spectra:
        singular = measures.singular(stop.after[:SPECTRA])
        columns["rank"] = measures.effective_rank(singular, tokens)
        columns["entropy"] = measures.spectral_entropy(singular)
    return columns
