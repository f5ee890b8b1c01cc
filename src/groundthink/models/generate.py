"""Generation with recurrent state: one token a step, memory constant in the length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from groundthink.data.tokenizers import Tokenizer
from groundthink.errors import UserError
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.models.config import Sampling
from groundthink.models.decode import Decoder

MEMORY = 256
"""Tokens that the repetition penalty looks back on."""


@dataclass
class Session:
    """A text under way: the decoder has read all but `pending`."""

    decoder: Decoder | None = None
    pending: list[int] = field(default_factory=list)
    recent: list[int] = field(default_factory=list)
    position: int = 0

    @property
    def state(self) -> State | None:
        """A copy of the state before the pending tokens; None if the model has read none."""
        return self.decoder and self.decoder.state

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens for the model to read."""
        self.pending += tokens
        self.recent = (self.recent + list(tokens))[-MEMORY:]
        self.position += len(tokens)

    def save(self, path: str | Path) -> None:
        """Write the session; a loaded one continues the text exactly."""
        state = self.state
        assert state is not None, "nothing has been generated yet"
        numbers = {"pending": self.pending, "recent": self.recent, "position": [self.position]}
        state.save(path, **{f"session.{k}": torch.tensor(v) for k, v in numbers.items()})

    @classmethod
    def load(cls, path: str | Path, model: LanguageModel) -> Session:
        """Read a saved session.

        Raises:
            UserError: the file cannot be read or is of another model.
        """
        state, extra = State.read(path)
        if "session.position" not in extra:
            raise UserError(f"{path} holds no generation session; write one with --save-state")
        pending, recent, (position,) = (
            extra[f"session.{k}"].tolist() for k in ("pending", "recent", "position")
        )
        return cls(Decoder(model, 1, state), pending, recent, position)


def generate(
    model: LanguageModel, session: Session, n: int, sampling: Sampling, stop: int | None = None
) -> Iterator[int]:
    """Draw up to n tokens that continue a session, one at a time; ends after `stop`.

    Raises:
        UserError: the session is empty, or the sampling settings cannot work.
    """
    if not session.pending:
        raise UserError("the prompt is empty; give at least one token to continue")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.repetition_penalty <= 0:
        raise UserError("temperature must be >= 0, top_p in (0, 1] and repetition_penalty > 0")
    decoder = session.decoder = session.decoder or Decoder(model, 1)
    assert decoder.model is model, "the session is of another model"
    for _ in range(n):
        tokens = torch.tensor([session.pending])
        logits = decoder.read(tokens) if tokens.shape[1] > 1 else decoder.step(tokens[0])
        token = draw(logits[0].float().cpu(), session, sampling)
        session.pending.clear()
        session.extend([token])
        yield token
        if token == stop:
            return


@torch.inference_mode()
def draw(logits: Tensor, session: Session, sampling: Sampling) -> int:
    """One token id from the logits [V] of a position."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(session.recent)
        value = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(value > 0, value / penalty, value * penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits, ids = (logits / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        logits[sampling.top_k :] = -torch.inf
    p = logits.softmax(0)
    p[p.cumsum(0) - p >= sampling.top_p] = 0
    generator = torch.Generator().manual_seed(sampling.seed * 1_000_003 + session.position)
    return int(ids[torch.multinomial(p, 1, generator=generator)])


def stream_text(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Decode tokens as they come; the pieces join to the decoded whole.

    Characters that span tokens are held back until they are complete.
    """
    held: list[int] = []
    for token in tokens:
        held.append(token)
        text = tokenizer.decode(held)
        if not text.endswith("\ufffd") or len(held) > 8:
            held.clear()
            yield text
    if held:
        yield tokenizer.decode(held)


def sample(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    n: int,
    sampling: Sampling | None = None,
) -> str:
    """n tokens that continue a prompt, as text, ended early by the end-of-text token."""
    session = Session()
    session.extend(tokenizer.encode(prompt) or [tokenizer.eos])
    tokens = generate(model, session, n, sampling or Sampling(), stop=tokenizer.eos)
    return "".join(stream_text(tokenizer, (t for t in tokens if t != tokenizer.eos)))
