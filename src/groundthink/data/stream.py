"""Batches in a fixed order that one integer resumes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from groundthink.data.packed import Packed
from groundthink.errors import UserError

IGNORE = -100


class Batch(NamedTuple):
    """Legend: b batch rows, t tokens."""

    tokens: torch.Tensor  # int64 [b t]
    targets: torch.Tensor  # int64 [b t], the token that follows each; IGNORE is not scored
    reset: torch.Tensor  # bool [b t], true where all state is zero before the token


class _Text:
    """The tokens of a split with its documents in some order, turned by some offset."""

    def __init__(self, packed: Packed, rng: np.random.Generator | None = None):
        starts = np.concatenate(([0], packed.doc_ends[:-1]))
        lengths = packed.doc_ends - starts
        order = slice(None) if rng is None else rng.permutation(len(starts))
        self.tokens = packed.tokens
        self.offset = 0 if rng is None else int(rng.integers(len(packed.tokens)))
        self.starts, self.ends = starts[order], np.cumsum(lengths[order])
        self.firsts = self.ends - lengths[order]

    def batch(self, first: np.ndarray, seq_len: int, fresh: bool) -> Batch:
        """The windows of `seq_len` tokens that begin at positions `first` [b].

        `fresh` resets at their first tokens, besides at every start of a document.
        """
        at = (first[:, None] + np.arange(seq_len + 1) + self.offset) % len(self.tokens)
        document = np.searchsorted(self.ends, at, side="right")
        within = at - self.firsts[document]
        ids = torch.from_numpy(self.tokens[self.starts[document] + within].astype(np.int64))
        reset = torch.from_numpy(within[:, :-1] == 0)
        reset[:, 0] |= fresh
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), reset)


class _Stream:
    """Position, a count of batches, is the whole of the state."""

    position = 0
    steps_per_epoch: int

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def next(self) -> Batch:
        """The batch at `position`, which moves on by one."""
        epoch, step = divmod(self.position, self.steps_per_epoch)
        self.position += 1
        return self._batch(epoch, step)

    def _batch(self, epoch: int, step: int) -> Batch:
        raise NotImplementedError


class Lanes(_Stream):
    """Contiguous text: row b of a batch goes on where row b of the batch before ended.

    Each epoch puts the documents in an order, and starts at an offset, drawn from (seed, epoch);
    lane b is then the b-th of `batch_size` equal slices. The state is reset at the first token
    of every document and at the start of a lane, so at every new epoch. The track split keeps
    its own order. What remains of a lane after whole chunks, below `seq_len` tokens, is skipped.

    Raises:
        UserError: the text is shorter than one batch, or packed for another number of lanes.
    """

    def __init__(self, packed: Packed, batch_size: int, seq_len: int, seed: int = 0):
        if packed.lanes not in (0, batch_size):
            raise UserError(
                f"this data is split for {packed.lanes} lanes, not for a batch of {batch_size}"
            )
        self.packed, self.seq_len, self.seed = packed, seq_len, seed
        self.length = len(packed.tokens) // batch_size
        self.steps_per_epoch = (self.length - 1) // seq_len
        if self.steps_per_epoch < 1:
            raise _too_short(packed, batch_size, seq_len, batch_size * (seq_len + 1))
        self.first = np.arange(batch_size) * self.length
        self._epoch = -1

    def _batch(self, epoch: int, step: int) -> Batch:
        if epoch != self._epoch:
            shuffled = None if self.packed.lanes else np.random.default_rng([self.seed, epoch])
            self._epoch, self._text = epoch, _Text(self.packed, shuffled)
        return self._text.batch(self.first + step * self.seq_len, self.seq_len, fresh=step == 0)


class Windows(_Stream):
    """Independent windows of the text, in an order drawn from (seed, epoch).

    The state is reset at the first token of every window and of every document inside it. The
    last windows that fill no batch are skipped; the draw makes them others in each epoch.

    Raises:
        UserError: the text is shorter than one batch.
    """

    def __init__(self, packed: Packed, batch_size: int, seq_len: int, seed: int = 0):
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.windows = (len(packed.tokens) - 1) // seq_len
        self.steps_per_epoch = self.windows // batch_size
        if self.steps_per_epoch < 1:
            raise _too_short(packed, batch_size, seq_len, batch_size * seq_len + 1)
        self._text = _Text(packed)
        self._epoch = -1

    def _batch(self, epoch: int, step: int) -> Batch:
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._epoch, self._order = epoch, rng.permutation(self.windows)
        chosen = self._order[step * self.batch_size : (step + 1) * self.batch_size]
        return self._text.batch(chosen * self.seq_len, self.seq_len, fresh=True)


def evaluation(
    packed: Packed, batch_size: int, seq_len: int, max_tokens: int = 0
) -> Iterator[Batch]:
    """The split in its own order: every token but its first is a target exactly once.

    The text lies in `batch_size` lanes, and each batch continues the rows of the one before, so
    state may be carried; it is reset at lane and document starts. A lane's last target is the
    next lane's first token; past the end targets are IGNORE.

    Args:
        max_tokens: score this many tokens, rounded up to whole batches: the first of each lane,
            so the same ones at every call and spread over the split; 0 scores all.
    """
    if len(packed.tokens) < 2:
        raise UserError("the split to evaluate holds fewer than 2 tokens")
    targets = len(packed.tokens) - 1
    lane = -(-targets // batch_size)
    steps = -(-lane // seq_len)
    if max_tokens:
        steps = min(steps, -(-max_tokens // (batch_size * seq_len)))
    text, first = _Text(packed), np.arange(batch_size) * lane
    for step in range(steps):
        batch = text.batch(first + step * seq_len, seq_len, fresh=step == 0)
        target = first[:, None] + step * seq_len + np.arange(1, seq_len + 1)
        last = np.minimum(first + lane, targets)[:, None]
        beyond = torch.from_numpy(target > last)
        yield batch._replace(targets=batch.targets.masked_fill(beyond, IGNORE))


def _too_short(packed: Packed, batch_size: int, seq_len: int, needed: int) -> UserError:
    return UserError(
        f"the corpus has {len(packed.tokens):,} tokens to train on and one batch of {batch_size} x "
        f"{seq_len} needs {needed:,}; lower train.batch_size or train.seq_len, or take more text"
    )
