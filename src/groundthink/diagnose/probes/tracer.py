"""A fact planted in real text and followed: how it is written, kept and read.

A fact is a cue of two rare tokens and a value token: "... cue value ... cue". It is in no
language, so it works for every tokenizer, and it is planted with each of a few values in the same
text, so that whatever differs between two runs was done by the fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from groundthink.diagnose.probes.information import sketch
from groundthink.diagnose.states import PARTS
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel

PREFIX = 16
"""Tokens of text before the fact."""
VALUES = 4
CUES = 4
SHORTEST, LONGEST = 32, 256
"""Longest distance asked for: `LONGEST` where the text and the model reach it."""
SEEN = 4
"""Times that a token must occur in the text to be used in a fact."""
TEXTS = 8
"""Texts followed at once."""
SWAPPED = 32
"""Texts whose states are interchanged."""
PLACES = 8
"""Places whose states are interchanged in one forward pass."""
ASKED = 16
"""Distance in tokens at which verdicts are given."""

Site = tuple[int, str]
"""Layer and branch."""
Place = tuple[int | None, str | None]
"""Layer and module of a state; None for all of them."""
WHOLE: Place = (None, None)


class Facts(NamedTuple):
    """What is planted."""

    cues: Tensor
    """Pairs of rare tokens, int64 [CUES, 2]."""
    values: Tensor
    """Tokens of middling frequency, int64 [VALUES]."""


def choose(subject: Subject) -> Facts:
    """Cues from the rarest tokens of the held-out text, values from the middle of its ranks.

    Raises:
        UserError: too few different tokens occur in it.
    """
    text = torch.cat([document[:4096] for document in subject.documents[:64]])
    counts = text.bincount(minlength=subject.config.vocab_size)
    ranked = counts.argsort(stable=True)
    ranked = ranked[counts[ranked] >= SEEN]
    needed = 2 * CUES + VALUES
    if len(ranked) < needed:
        raise UserError(
            f"the held-out text has {len(ranked)} different tokens that occur {SEEN} times and "
            f"{needed} are needed to plant facts; give a longer text with --data"
        )
    middle = max(2 * CUES, (len(ranked) - VALUES) // 2)
    cues, values = ranked[: 2 * CUES].view(CUES, 2), ranked[middle : middle + VALUES]
    return Facts(cues.to(subject.device), values.to(subject.device))


def setting(subject: Subject) -> tuple[list[int], Tensor, list[int]]:
    """Distances 0, 1, 2, 4 ..., or 0, 1, 2, `ASKED` and the lengths that were asked for; texts long
    enough for the longest, with their clusters.

    Raises:
        UserError: the text or the model is too short for the lengths, or for `SHORTEST`.
    """
    if subject.lengths:
        distances = sorted({0, 1, 2, ASKED, *subject.lengths})
        return distances, *subject.stretches(subject.samples, PREFIX + 1 + distances[-1])
    longest = LONGEST
    if not subject.model.recurrent:
        room = subject.config.context_length - PREFIX - 5  # cue and value, and the cue again
        if room < SHORTEST:
            raise UserError(
                f"the model knows {subject.config.context_length} positions and "
                f"{SHORTEST + PREFIX + 5} are needed to plant a fact and ask for it"
            )
        longest = min(longest, 1 << room.bit_length() - 1)
    while True:
        try:
            texts, clusters = subject.stretches(subject.samples, PREFIX + 1 + longest)
            break
        except UserError:
            if longest <= SHORTEST:
                raise
            longest //= 2
    return [0, *(1 << i for i in range(longest.bit_length()))], texts, clusters


@dataclass(frozen=True)
class Trace:
    """What became of the facts in N texts, at D distances, with K values."""

    states: dict[Site, Tensor]
    """Sketches of the matrix states [N, D, K, buckets]."""
    kept: dict[Site, Tensor]
    """Distance between the states of two values, over what it was at the fact [N, D]."""
    written: dict[Site, Tensor]
    """||S_t - S_(t-1)|| at the value, over its mean at the next two tokens of the text [N]."""
    log_p: Tensor
    """Log-probability at the cue of each value asked for, by planted value [N, D, K, K]."""
    moved: dict[Place, Tensor]
    """Change of the logit difference of two values when the state of a place comes from the run
    with the other value, at the distances `swapped` [texts, distances]."""


def swapped(distances: list[int]) -> list[int]:
    """Every second distance from the second on, and `ASKED`."""
    return [d for i, d in enumerate(distances) if i % 2 or d == ASKED]


@torch.inference_mode()
def trace(
    model: LanguageModel, texts: Tensor, distances: list[int], facts: Facts, swaps: int = SWAPPED
) -> Trace:
    """Plant each value in each text and follow it over the distances; exchange states in the first
    `swaps` texts."""
    return joined(
        [
            _follow(model, facts, part, distances, swap=TEXTS * i < swaps)
            for i, part in enumerate(texts.split(TEXTS))
        ]
    )


def joined(parts: Sequence[Trace]) -> Trace:
    """The trace of all texts from those of a few each."""

    def join(field: str) -> dict:
        found = [getattr(part, field) for part in parts]
        return {key: torch.cat([x[key] for x in found if key in x]) for key in found[0]}

    log_p = torch.cat([part.log_p for part in parts])
    return Trace(join("states"), join("kept"), join("written"), log_p, join("moved"))


def _follow(
    model: LanguageModel, facts: Facts, texts: Tensor, distances: list[int], swap: bool
) -> Trace:
    """The trace of a few texts."""
    n, k = len(texts), len(facts.values)
    cues = facts.cues[torch.arange(n, device=texts.device) % len(facts.cues)]
    sites = branch_sites(model)
    states, gaps, changes = ({site: [] for site in sites} for _ in range(3))
    moved = {place: [] for place in swap_places(model)} if swap else {}
    log_p = []
    for i, (before, state) in enumerate(_stages(model, facts, texts, cues, distances)):
        for site in sites:
            x = matrix(state, site)
            other = x.unflatten(0, (n, k)).roll(-1, 1).flatten(0, 1)
            states[site].append(sketch(x).unflatten(0, (n, k)))
            gaps[site].append(_norm(x - other).view(n, k).mean(1))
            if i < 3:  # one token each: the value, and two of the text
                changes[site].append(_norm(x - matrix(before, site)).view(n, k).mean(1))
        first, last = cues.repeat_interleave(k, 0).split(1, 1)
        _, at_cue = model.features(first, state)
        answer = ask(model, last, at_cue).log_softmax(-1)[:, facts.values]
        log_p.append(answer.unflatten(0, (n, k)))
        if moved and distances[i] in swapped(distances):
            for place, x in interchange(model, cues[:, 1:], at_cue, facts.values).items():
                moved[place].append(x)
    fact = {site: (own, (a + b) / 2) for site, (own, a, b) in changes.items()}
    return Trace(
        {site: torch.stack(x, 1) for site, x in states.items()},
        {site: torch.stack([gap / x[0] for gap in x], 1) for site, x in gaps.items()},
        {site: own / others for site, (own, others) in fact.items()},
        torch.stack(log_p, 1),
        {place: torch.stack(x, 1) for place, x in moved.items()},
    )


def _stages(
    model: LanguageModel, facts: Facts, texts: Tensor, cues: Tensor, distances: list[int]
) -> Iterator[tuple[State, State]]:
    """The states before and after the value, then before and after the tokens up to each further
    distance; a row for each value in each text."""
    k = len(facts.values)
    _, state = model.features(torch.cat((texts[:, :PREFIX], cues), 1))
    state = state.map(lambda x: x.repeat_interleave(k, 0))
    steps = [facts.values.repeat(len(texts))[:, None]]
    rows = texts[:, PREFIX:].repeat_interleave(k, 0)
    steps += [rows[:, a:b] for a, b in pairwise(distances)]
    for tokens in steps:
        before, (_, state) = state, model.features(tokens, state)
        yield before, state


def ask(model: LanguageModel, token: Tensor, state: State) -> Tensor:
    """Logits [B, V] after one more token [B, 1]."""
    return model.head(model.features(token, state)[0][:, -1]).float()


def interchange(
    model: LanguageModel, token: Tensor, state: State, values: Tensor
) -> dict[Place, Tensor]:
    """How far the state of each place carries the answer from one value to another, in logits [N].

    The runs with the first two values exchange that part of their states before the last token of
    the cue. Towards the other value counts as positive; both directions are averaged.

    Args:
        token: the last of the cue, int64 [N, 1].
        state: before it, of N texts times K values.
    """
    n, k = len(token), len(values)
    pair = k * torch.arange(n, device=token.device)[:, None] + torch.tensor([0, 1]).to(token.device)
    own, other = (state.map(lambda x, i=i: x[i.flatten()]) for i in (pair, pair.flip(1)))
    token = token.repeat_interleave(2, 0)

    def preferences(*states: State) -> Tensor:
        logits = ask(model, token.repeat(len(states), 1), stacked(states))
        return (logits[:, values[0]] - logits[:, values[1]]).view(len(states), n, 2)

    def exchanged(layer: int | None, part: str | None) -> State:
        layers, parts = None if layer is None else [layer], part and [part]
        return own.patch(other, layers=layers, parts=parts)

    before = preferences(own)
    towards = before.new_tensor([-0.5, 0.5])
    found, places = {}, swap_places(model)
    for first in range(0, len(places), PLACES):
        here = places[first : first + PLACES]
        moved = preferences(*(exchanged(*place) for place in here)) - before
        found |= dict(zip(here, moved @ towards, strict=True))
    return found


def stacked(states: Sequence[State]) -> State:
    """The rows of several states in one."""
    trees = [dict(state.items()) for state in states]
    return State.from_items({name: torch.cat([tree[name] for tree in trees]) for name in trees[0]})


def branch_sites(model: LanguageModel) -> list[Site]:
    """Every branch with a matrix state in every layer."""
    layers = model.init_state(1).layers
    return [(i, name) for i, layer in enumerate(layers) for name in PARTS if name in layer]


def swap_places(model: LanguageModel) -> list[Place]:
    """The mixer of each layer, each kind of module in all layers, and everything."""
    layers = model.init_state(1).layers
    kinds = list(dict.fromkeys(name for layer in layers for name in layer))
    mixers = [(i, name) for i, layer in enumerate(layers) for name in layer if name != "ffn"]
    return [*mixers, *((None, name) for name in kinds), WHOLE]


def matrix(state: State, site: Site) -> Tensor:
    """The matrix state [B, H, ., .] of a branch in a layer."""
    layer, branch = site
    return state.layers[layer][branch][PARTS[branch]]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).float().norm(dim=1)
