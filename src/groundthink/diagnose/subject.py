"""What gates and probes are given: a model, held-out text and the records of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink import config as configs
from groundthink import records
from groundthink.data.config import DataConfig
from groundthink.data.corpora import prepare
from groundthink.data.packed import Packed
from groundthink.data.stream import Batch, Windows
from groundthink.data.tokenizers import Tokenizer
from groundthink.device import pick_device
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.models.base import LanguageModel
from groundthink.models.build import build
from groundthink.models.config import ModelConfig
from groundthink.records import Record
from groundthink.verdicts.thresholds import MIN_BATCHES

ROWS, LENGTH = 2, 256
"""Shape of the batches that the gates read."""
FEW = 8
"""Fewer documents than this cannot be resampled: their stretches are taken as independent."""


class Documents(Sequence[Tensor]):
    """The documents of a split, longest first, int64 [length] without eos; read from disk when
    they are asked for."""

    def __init__(self, packed: Packed):
        ends = packed.doc_ends
        starts = np.concatenate(([0], ends[:-1]))
        order = np.argsort(starts - ends, kind="stable")
        self._tokens, self._spans = packed.tokens, np.stack((starts, ends - 1), 1)[order]

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self._spans[index]
        return torch.from_numpy(self._tokens[start:end].astype(np.int64))


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
    documents: Sequence[Tensor] = ()
    """Held-out documents without eos, int64 [length] on the CPU, longest first."""
    tokenizer: Tokenizer | None = None
    """What made the tokens."""
    train_length: int = 0
    """Tokens that a gradient reached back over in training."""
    samples: int = 64
    """Stretches of text, or pairs, that a probe reads."""
    folder: Path | None = None
    """The run."""
    lengths: tuple[int, ...] = ()
    """Tokens over which the use of context is measured; what text and model allow if empty."""

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def untrained(self) -> LanguageModel:
        """The model as it was before training: a control."""
        return build(self.config, seed=self.seed, device=self.device).eval()

    def rows(self, count: int, length: int) -> Tensor:
        """The first `count` stretches of `length` contiguous tokens, int64 [count, length]."""
        pieces = [piece for batch in self.batches for piece in batch.tokens.split(length, dim=1)]
        whole = torch.cat([piece for piece in pieces if piece.shape[1] == length])
        return whole[:count].to(self.device)

    def line(self, length: int) -> Tensor:
        """`length` tokens in one row, int64 [1, length]; a shorter text is repeated."""
        text = torch.cat([batch.tokens.flatten() for batch in self.batches])
        return text.repeat(-(-length // len(text)))[None, :length].to(self.device)

    def stretches(self, n: int, length: int) -> tuple[Tensor, list[int]]:
        """`n` stretches of text, each from the start of a document; where there are fewer
        documents of that length, their second stretches follow, and so on.

        Returns:
            Tokens, int64 [n, length], and the cluster of each row: its document, or the row itself
            where fewer than `FEW` documents are long enough to be resampled.

        Raises:
            UserError: the text is shorter.
        """
        long = [i for i, text in enumerate(self.documents) if len(text) >= length]
        most = len(self.documents[0]) // length if long else 0
        spread = np.random.default_rng(0).permutation(long)
        places = (
            (int(i), self.documents[int(i)][k * length : (k + 1) * length])
            for k in range(most)
            for i in spread
        )
        found = list(islice(((i, row) for i, row in places if len(row) == length), n))
        if len(found) < n:
            raise UserError(
                f"the held-out text has {len(found)} stretches of {length} tokens within one "
                f"document and {n} are needed; give a longer text with --data, or fewer --samples"
            )
        clusters = [i for i, _ in found] if len(long) >= FEW else list(range(n))
        return torch.stack([row for _, row in found]).to(self.device), clusters

    def losses(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and the loss of each token in nats [B, T], 0 where it is not scored."""
        logits, _ = model(batch.tokens.to(self.device), None, batch.reset.to(self.device))
        targets = batch.targets.to(self.device)
        flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        return logits, flat.view(targets.shape)


def subject_of(
    run: str | Path,
    device: str = "auto",
    *,
    data: str = "",
    samples: int = 64,
    lengths: tuple[int, ...] = (),
) -> Subject:
    """The last checkpoint of a run with its records and its validation text.

    Args:
        run: folder of a run, or of one of its checkpoints.
        data: a corpus to read instead of the run's own, with the run's tokenizer.
        samples, lengths: as in `Subject`.

    Raises:
        UserError: no run there, a damaged file, no tokenizer, too little held-out text, or a length
            of no tokens.
    """
    if any(length < 1 for length in lengths):
        raise UserError(f"lengths are numbers of tokens, and {min(lengths)} is none")
    checkpoint = pretrained.model_folder(run)
    folder = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else Path(run)
    values = configs.read_yaml(folder / "config.yaml")
    if "train" not in values:
        raise UserError(f"{folder} is a model without its run; give a folder of runs/ instead")
    train = values["train"]
    model, tokenizer = pretrained.load(
        checkpoint, device=pick_device(device), backend=train["backend"]
    )
    if tokenizer is None:
        raise UserError(f"{checkpoint} has no tokenizer.json, so it cannot read a text")
    config = configs.from_dict(DataConfig, values["data"], str(folder / "config.yaml"), "data.")
    if data:
        config = replace(config, corpus=data)
    corpus = prepare(config, tokenizer=tokenizer, lanes=train["batch_size"], log=lambda _: None)
    text = corpus.splits.get("val")
    if text is None or len(text.tokens) <= ROWS * LENGTH:
        found = 0 if text is None else len(text.tokens)
        raise UserError(
            f"{config.corpus} has {found} validation tokens and {ROWS * LENGTH + 1} are needed; "
            "use more text or a larger data.val_fraction"
        )
    stream = Windows(text, ROWS, LENGTH)
    return Subject(
        model=model,
        batches=[stream.next() for _ in range(min(MIN_BATCHES, stream.steps_per_epoch))],
        steps=pretrained.read_meta(checkpoint)["step"],
        seed=train["seed"],
        train_tokens=train["batch_size"] * train["seq_len"],
        records=records.read(folder / "metrics.jsonl"),
        documents=Documents(text),
        tokenizer=tokenizer,
        train_length=train["seq_len"],
        samples=samples,
        folder=folder,
        lengths=lengths,
    )
