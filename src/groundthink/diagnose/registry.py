"""What a gate is and what it is given."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.data.stream import Batch
from groundthink.diagnose.components import parallel
from groundthink.models.base import LanguageModel
from groundthink.models.config import ModelConfig
from groundthink.records import Record
from groundthink.verdicts.verdict import Finding, skipped


@dataclass(frozen=True)
class Subject:
    """A model, held-out text and the records of the run it comes from."""

    model: LanguageModel
    """On its device, in eval mode."""
    batches: Sequence[Batch]
    """Real text in rows of at least 256 tokens; rows of one batch are independent."""
    steps: int = 0
    """Optimizer steps the model was trained for."""
    seed: int = 0
    """Seed of its weights."""
    train_tokens: int = 0
    """Tokens in one forward pass of its training."""
    records: Sequence[Record] = field(default_factory=list)
    """Lines of metrics.jsonl."""

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def rows(self, count: int, length: int) -> Tensor:
        """The first `count` stretches of `length` contiguous tokens, int64 [count, length]."""
        pieces = [piece for batch in self.batches for piece in batch.tokens.split(length, dim=1)]
        whole = torch.cat([piece for piece in pieces if piece.shape[1] == length])
        return whole[:count].to(self.device)

    def line(self, length: int) -> Tensor:
        """`length` tokens in one row, int64 [1, length]; a shorter text is repeated."""
        text = torch.cat([batch.tokens.flatten() for batch in self.batches])
        return text.repeat(-(-length // len(text)))[None, :length].to(self.device)

    def losses(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and the loss of each token in nats [B, T], 0 where it is not scored."""
        logits, _ = model(batch.tokens.to(self.device), None, batch.reset.to(self.device))
        targets = batch.targets.to(self.device)
        flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return logits, flat.view(targets.shape)


Run = Callable[[Subject], list[Finding]]


class Gate:
    """A test of a model; called with a subject it gives findings. Its docstring is its function's.

    Args:
        both: it compares the two branches and needs blocks that fuse them.
        trained: it means nothing on an untrained model.
    """

    def __init__(self, id: str, title: str, run: Run, both: bool, trained: bool):
        self.id, self.title, self.run, self.both, self.trained = id, title, run, both, trained
        functools.update_wrapper(self, run)

    def __call__(self, subject: Subject) -> list[Finding]:
        """The findings; a skipped one if the model has no block with both branches to compare."""
        if self.both and not parallel(subject.model):
            return [skipped(self.id, self.title, "no block of this model fuses RWKV-6 and Mamba-2")]
        return self.run(subject)


def gate(
    id: str, title: str, *, both: bool = False, trained: bool = False
) -> Callable[[Run], Gate]:
    """Make a function `(subject) -> findings` a `Gate`."""
    return lambda run: Gate(id, title, run, both, trained)


def worst(errors: Mapping[str, float]) -> tuple[str, float]:
    """Name and value of the largest error; a NaN is larger than any."""
    name = max(errors, key=lambda key: math.inf if math.isnan(errors[key]) else errors[key])
    return name, errors[name]
