"""Growth of states, and loss, beyond the length that a model was trained on."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from groundthink.diagnose.losses import ROWS, token_losses
from groundthink.diagnose.measures import rms
from groundthink.diagnose.probes.influence import by_context
from groundthink.diagnose.states import matrices
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.models.base import LanguageModel
from groundthink.verdicts.statistics import Interval, bootstrap_mean

REACH = (16, 8, 4)
"""Multiples of the training length to read, the longest that the text allows."""
TOKENS = 2**16
"""Tokens read in all, unless that leaves fewer texts than `FEWEST`."""
FEWEST, MOST = 8, 32
"""Texts."""


@dataclass(frozen=True)
class Growth:
    """Sizes of states and losses along long texts."""

    start: int
    """Training length: where the growth begins to count."""
    stops: list[int]
    """Tokens read; the first is half of `start`, the second is `start`."""
    rms: dict[str, Tensor]
    """Module -> RMS of the state at every stop [texts, stops]."""
    loss: Tensor
    """Mean loss in nats of the tokens since the stop before [texts, stops]."""
    fresh: Tensor
    """Mean loss of the last `start` tokens after no more than `start` tokens of context [texts]."""
    clusters: list[int]
    """Document of every text."""

    def exponent(self, name: str) -> Interval:
        """gamma of RMS ~ t^gamma beyond the training length: the slope of ln RMS over ln t."""
        t = torch.tensor(self.stops[1:], dtype=torch.float64).log()
        t = t - t.mean()
        slopes = self.rms[name][:, 1:].double().log() @ t / (t @ t)
        return bootstrap_mean(slopes.numpy(), self.clusters)

    @property
    def rise(self) -> Interval:
        """What the last tokens cost after the whole text, beyond what the same tokens cost after
        one training length of context, in nats."""
        rise = self.loss[:, -1] - self.fresh
        return bootstrap_mean(rise.double().numpy(), self.clusters)


def growth(subject: Subject) -> Growth | None:
    """States and losses along texts of up to sixteen training lengths.

    None if the held-out text has no `FEWEST` stretches of `needed(subject)` tokens.
    """
    for multiple in REACH:
        length = multiple * subject.train_length
        texts = min(MOST, max(FEWEST, TOKENS // length), max(FEWEST, subject.samples))
        try:
            tokens, clusters = subject.stretches(texts, length)
        except UserError:
            continue
        start = subject.train_length
        beyond = {round(start * 2 ** (k / 2)) for k in range(round(2 * math.log2(multiple)) + 1)}
        stops = [start // 2, *sorted(beyond | {length - start})]
        sizes, losses = along(subject.model, tokens, stops)
        fresh = by_context(subject.model, tokens, [start], start)[:, 0]
        return Growth(start, stops, sizes, losses, fresh, clusters)
    return None


def needed(subject: Subject) -> str:
    """What `growth` asks of a text, in words."""
    return f"needs {FEWEST} stretches of {REACH[-1] * subject.train_length} tokens in documents"


def along(
    model: LanguageModel, texts: Tensor, stops: list[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """RMS of every state [texts, stops] and mean loss between stops [texts, stops]."""
    sizes: dict[str, list[Tensor]] = defaultdict(list)
    losses = []
    for part in texts.split(ROWS):
        state, done, here, spent = None, 0, defaultdict(list), []
        for stop in stops:
            features, state = model.features(part[:, done:stop], state)
            for name, matrix in matrices(state).items():
                here[name].append(rms(matrix))
            targets = part[:, done + 1 : stop + 1]
            spent.append(token_losses(model, features[:, : targets.shape[1]], targets).mean(1))
            done = stop
        for name, columns in here.items():
            sizes[name].append(torch.stack(columns, 1).cpu())
        losses.append(torch.stack(spent, 1).cpu())
    return {name: torch.cat(parts) for name, parts in sizes.items()}, torch.cat(losses)
