"""How long one token, or the state of one branch, moves what follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from groundthink.diagnose.components import branches
from groundthink.diagnose.losses import ROWS, token_losses
from groundthink.diagnose.measures import distance
from groundthink.diagnose.states import PARTS, matrices
from groundthink.models.base import LanguageModel

WINDOW = 8
"""Tokens up to a distance over which a divergence is averaged."""


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of q from p in nats, mean over tokens [B].

    Args:
        p, q: logits [B, T, V].
    """
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean(1)


def influence(
    model: LanguageModel, texts: Tensor, at: int, distances: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What replacing one token, by that of another text, changes later on.

    Args:
        texts: int64 [N, T] with T > at + the longest distance.
        at: position of the token.
        distances: growing tokens after it, at least `WINDOW` apart.

    Returns:
        Divergence of the predictions, mean over the `WINDOW` tokens up to each distance
        [N, distances], and by module the relative distance of the states there [N, distances].
    """
    found, moved = [], defaultdict(list)
    for part in texts.split(ROWS):
        other = part.clone()
        other[:, at] = part[:, at].roll(1)
        same = other[:, at] == part[:, at]
        other[same, at] = (part[same, at] + 1) % model.config.vocab_size
        _, before = model.features(part[:, :at])
        states, done = [before, before], at
        columns, here = [], defaultdict(list)
        for reach in distances:
            logits = []
            for i, tokens in enumerate((part, other)):
                x, states[i] = model.features(tokens[:, done : at + reach + 1], states[i])
                logits.append(model.head(x[:, -WINDOW:]))
            columns.append(divergence(*logits))
            pair = [matrices(state) for state in states]
            for name in pair[0]:
                here[name].append(distance(pair[0][name], pair[1][name]))
            done = at + reach + 1
        found.append(torch.stack(columns, 1).cpu())
        for name, values in here.items():
            moved[name].append(torch.stack(values, 1).cpu())
    return torch.cat(found), {name: torch.cat(parts) for name, parts in moved.items()}


def flow(model: LanguageModel, texts: Tensor, split: int) -> dict[str, Tensor]:
    """Divergence of the predictions after token `split` when the matrix state of one branch, in all
    layers, is empty there, mean over the rest of the text [N] by branch."""
    found = defaultdict(list)
    for part in texts.split(ROWS):
        _, state = model.features(part[:, :split])
        whole = model.head(model.features(part[:, split:], state)[0])
        for branch in branches(model):
            without = state.zero(parts=[f"{branch}.{PARTS[branch]}"])
            logits = model.head(model.features(part[:, split:], without)[0])
            found[branch].append(divergence(whole, logits).cpu())
    return {branch: torch.cat(parts) for branch, parts in found.items()}


def by_context(model: LanguageModel, texts: Tensor, contexts: Sequence[int], scored: int) -> Tensor:
    """Loss in nats of the last `scored` tokens of each text, always the same ones, after as many
    tokens of context as given [N, contexts]."""
    found = []
    for part in texts.split(ROWS):
        columns = []
        for context in contexts:
            tokens = part[:, -(context + scored) :]
            features, _ = model.features(tokens[:, :-1])
            columns.append(token_losses(model, features[:, -scored:], tokens[:, -scored:]).mean(1))
        found.append(torch.stack(columns, 1).cpu())
    return torch.cat(found)
