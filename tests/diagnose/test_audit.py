"""The audit passes a sound server and names what a broken one does."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diagnose.subjects import run, subject
from toys import randomized, small

from groundthink import State, build
from groundthink.diagnose.audit import LENGTH, audit
from groundthink.verdicts.verdict import Verdict

TEXT = torch.randint(50, (LENGTH,), generator=torch.Generator().manual_seed(0))


class Server:
    """Sound: requests of one length are answered in one batch, each from its own state."""

    def __init__(self, model):
        self.model = model
        self.states: dict[str, State] = {}
        self.newest: State | None = None

    def __call__(self, requests):
        replies = {}
        for length in {len(tokens) for tokens in requests.values()}:
            group = [session for session, tokens in requests.items() if len(tokens) == length]
            replies |= self.answer(group, torch.stack([requests[session] for session in group]))
        return replies

    def answer(self, sessions, tokens, ends=-1):
        befores = [dict(self.begin(session).items()) for session in sessions]
        joined = {name: torch.cat([state[name] for state in befores]) for name in befores[0]}
        logits, after = self.model(tokens, State.from_items(joined))
        for i, session in enumerate(sessions):
            own = after.map(lambda x, i=i: x[i : i + 1])
            self.states[session] = self.newest = self.keep(session, own)
        return dict(zip(sessions, logits[range(len(sessions)), ends], strict=True))

    def begin(self, session):
        return self.states.get(session) or self.model.init_state(1)

    def keep(self, session, state):
        return state


class Padding(Server):
    """Reads texts of all lengths at once, with pads after the shorter ones."""

    def __call__(self, requests):
        lengths = [len(tokens) for tokens in requests.values()]
        padded = torch.nn.utils.rnn.pad_sequence(list(requests.values()), batch_first=True)
        return self.answer(list(requests), padded, [length - 1 for length in lengths])


class StaleWindow(Server):
    """Writes the convolution window once and never again."""

    def keep(self, session, state):
        old = self.states.get(session)
        return state if old is None else state.patch(old, parts=["mamba2.conv"])


class LeftWindow(Server):
    """Zeroes the state of a new session, but for the convolution window of the one before."""

    def begin(self, session):
        fresh = super().begin(session)
        if session in self.states or self.newest is None:
            return fresh
        return fresh.patch(self.newest, parts=["mamba2.conv"])


class Zeroed(Server):
    def begin(self, session):
        return self.model.init_state(1)


class Reused(Server):
    """A new session begins where the last request ended."""

    def begin(self, session):
        return self.states.get(session) or self.newest or self.model.init_state(1)


@cache
def findings(server: type[Server], variant: str = "gf"):
    model = randomized(build(small(variant))).eval()
    return audit(lambda: server(model), model, TEXT)


@pytest.mark.parametrize("variant", ["gf", "rwkv6", "mamba2"])
def test_a_sound_server_passes(variant):
    found = findings(Server, variant)
    assert {finding.verdict for finding in found} == {Verdict.PASS}
    assert found[-1].name == "session leak" and found[-1].value == 0


@pytest.mark.parametrize(
    ("server", "fault", "cases"),
    [
        (Padding, "padding advances the state", "together, two lengths"),
        (StaleWindow, "stale convolution window", "continued"),
        (LeftWindow, "stale convolution window", "begun after another"),
        (Zeroed, "state zeroed each call", "continued"),
        (Reused, "state of the previous request reused", "begun after another"),
    ],
)
def test_a_planted_fault_is_found_by_name(server, fault, cases):
    found = findings(server)
    failed = {f.name: f.note for f in found if f.verdict is Verdict.FAIL and f.note}
    assert failed[f"served against alone, {cases}"] == fault
    assert set(failed.values()) == {fault}, "and no other fault is named"
    leaks = found[-1].verdict is Verdict.FAIL
    assert leaks == (server in (Reused, LeftWindow)), "only these carry text between sessions"


def test_faults_that_pads_alone_show_are_seen_where_lengths_differ():
    found = {finding.name: finding.verdict for finding in findings(Padding)}
    assert found["served against alone, together, one length"] is Verdict.PASS
    assert found["served against alone, continued"] is Verdict.PASS


@pytest.mark.parametrize("variant", ["gf-mh", "gpt2"])
def test_our_own_decoder_keeps_sessions_apart(variant):
    found = run("isolation", subject(variant, shape=(1, 4, 64)))
    assert len(found) == 5 and set(found.values()) == {Verdict.PASS}
