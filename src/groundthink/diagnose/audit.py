"""Whether what serves many sessions keeps their states whole and apart; if not, what it does.

The models have no pad mask: pads after a text are read as text. Serve texts of one length together,
or pad on the left and reset at the first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from groundthink.diagnose.registry import gate
from groundthink.diagnose.subject import Subject
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.models.decode import Decoder
from groundthink.ops.testing import relative_rms
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Finding, judge

Requests = Mapping[str, Tensor]
"""What comes in together: the next tokens, int64 [T], of each session; a new name begins one."""
Serve = Callable[[Requests], Mapping[str, Tensor]]
"""Answers requests: logits [V] after the last token of each."""

SCRIPT: dict[str, tuple[str, tuple[dict[str, int], ...]]] = {
    "continued": ("state not carried on whole", ({"a": 20}, {"a": 7}, {"a": 1}, {"a": 1})),
    "begun after another": ("session not begun from nothing", ({"b": 12}, {"c": 9}, {"c": 1})),
    "together, one length": (
        "sessions served together meet",
        ({"d": 10, "e": 10}, {"d": 5, "e": 5}),
    ),
    "together, two lengths": (
        "padding advances the state",
        ({"f": 10, "g": 23}, {"f": 5, "g": 3}),
    ),
}
"""Case -> the fault that it shows if no other explains a wrong reply; tokens of each request."""
TURNS = (15, 6, 1)
"""Tokens of the turns of two sessions that take turns."""
LENGTH = 256
"""Tokens of text that an audit reads."""
WORDS = {
    "mamba2.conv": "convolution window",
    "rwkv6.shift": "token shift of RWKV-6",
    "ffn.shift": "token shift of channel mixing",
    "rwkv6.wkv": "WKV matrix",
    "mamba2.ssm": "SSM matrix",
}


@gate("isolation", "sessions are served apart", suite="states")
def isolation(subject: Subject) -> list[Finding]:
    """Sessions that share one decoder answer as each would alone, and leak nothing."""
    model = subject.model
    return audit(lambda: decoded(model), model, subject.line(LENGTH)[0])


def decoded(model: LanguageModel) -> Serve:
    """Sessions that take turns in one `Decoder`."""
    decoder, states = Decoder(model, 1), {}

    def serve(requests: Requests) -> dict[str, Tensor]:
        replies = {}
        for session, tokens in requests.items():
            decoder.load(states.get(session) or model.init_state(1))
            read = decoder.step(tokens) if len(tokens) == 1 else decoder.read(tokens[None])
            replies[session], states[session] = read[0], decoder.state
        return replies

    return serve


@torch.no_grad()
def audit(start: Callable[[], Serve], model: LanguageModel, text: Tensor) -> list[Finding]:
    """Hold every reply of a server against its session run alone.

    A wrong reply is explained by the state that would have given it: none, that of the request
    before, or the right one with one part from elsewhere.

    Args:
        start: gives what is audited, a server that has served nothing yet; once for each case.
        model: the model in it.
        text: int64 [T], T >= `LENGTH`, on the model's device.

    Returns:
        A finding for each case of `SCRIPT`, whose note names the faults, and one for what a session
        learns of the text of another.
    """
    source, findings = iter(text.split(1)), []
    for case, (fault, script) in SCRIPT.items():
        serve, alone = start(), Alone(model)
        errors, faults = [], []
        for lengths in script:
            requests = {
                session: torch.cat([next(source) for _ in range(length)])
                for session, length in lengths.items()
            }
            replies, truths = serve(requests), alone.answers(requests)
            for session, tokens in requests.items():
                errors.append(relative_rms(replies[session], truths[session]))
                if not errors[-1] <= TOLERANCE and not faults:
                    faults = [alone.explain(session, tokens, replies[session]) or fault]
        worst = exact(max(errors), len(errors))
        findings.append(judge("isolation", "served against alone", worst, "".join(faults), case))
    return [*findings, leak(start(), text)]


TOLERANCE = THRESHOLDS["isolation", "served against alone"].warns[1]


def leak(serve: Serve, text: Tensor) -> Finding:
    """Largest change of any logit of a session when the session between its turns reads another
    text; all requests come alone."""
    turns = text[: sum(TURNS)].split(TURNS)
    replies: list[list[Tensor]] = []
    for name, other in (("p", text), ("q", text.flip(0))):
        between = other[-sum(TURNS) :].split(TURNS)
        replies.append([])
        for mine, theirs in zip(turns, between, strict=True):
            replies[-1].append(serve({name: mine})[name])
            serve({f"{name} between": theirs})
    moved = max(float((a - b).abs().max()) for a, b in zip(*replies, strict=True))
    return judge("isolation", "session leak", exact(moved, len(turns)))


class Alone:
    """Each session run by itself, and the states that a faulty server would mistake for its own."""

    def __init__(self, model: LanguageModel):
        self.model = model
        self.past: dict[str, list[State]] = {}
        self.others: dict[str, list[State]] = {}
        self.newest: list[State] = []

    def answers(self, requests: Requests) -> dict[str, Tensor]:
        """The right logits [V] after each request."""
        right, ends = {}, {}
        for session, tokens in requests.items():
            past = self.past.setdefault(session, [self.model.init_state(1)])
            logits, ends[session] = self.model(tokens[None], past[-1])
            right[session] = logits[0, -1]
            past.append(ends[session])
        self.others = {
            session: [*self.newest, *(end for other, end in ends.items() if other != session)]
            for session in requests
        }
        self.newest = list(ends.values())
        return right

    def explain(self, session: str, tokens: Tensor, reply: Tensor) -> str:
        """The fault whose state gives this reply to the last request, or nothing."""
        for fault, state in self._mistaken(session):
            logits, _ = self.model(tokens[None], state)
            if relative_rms(logits[0, -1], reply) <= TOLERANCE:
                return fault
        return ""

    def _mistaken(self, session: str) -> Iterator[tuple[str, State]]:
        *earlier, own, _ = self.past[session]
        zeros, others = self.model.init_state(1), self.others[session]
        if earlier:
            yield "state zeroed each call", zeros
        for other in others:
            yield "state of the previous request reused", other
        if not self.model.recurrent:
            return  # caches of other lengths have no parts to mistake
        for part in dict.fromkeys(name.split(".", 2)[2] for name in own.select()):
            for other in (zeros, *earlier, *others):
                yield f"stale {WORDS.get(part, part)}", own.patch(other, parts=[part])
