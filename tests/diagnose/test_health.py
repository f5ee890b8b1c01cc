"""G3.5 passes live states and finds frozen, dead, collapsed, spiky and broken ones."""

from __future__ import annotations

import pytest
import torch
from diagnose.subjects import run, subject

from groundthink.diagnose.gates import GATES
from groundthink.diagnose.health import health, observe
from groundthink.verdicts.verdict import Verdict

LIVE = {lag: torch.full((16,), value) for lag, value in ((1, 0.9), (8, 0.7), (64, 0.4))}


def judged(state: torch.Tensor, cosines=LIVE) -> dict[str, Verdict]:
    return {f.name.partition(",")[0]: f.verdict for f in health("blocks.0.x", state, cosines)}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", ["gf-mh", "rwkv6", "mamba2"])
def test_live_states_pass(variant):
    found = run("G3.5", subject(variant))
    assert set(found.values()) == {Verdict.PASS}, found


def test_every_layer_and_branch_is_judged():
    modules = {name.partition(", ")[2] for name in run("G3.5", subject())}
    assert modules == {f"blocks.{i}.{b}" for i in range(2) for b in ("rwkv6", "mamba2")}


def test_attention_has_no_recurrent_state():
    (finding,) = GATES["G3.5"](subject("gpt2"))
    assert finding.verdict is Verdict.INCONCLUSIVE


def test_a_frozen_state_fails():
    toy = subject()
    constant = noise(1, 2, 16, 16)

    def freeze(module, inputs, output):
        return output[0], output[1] | {"wkv": constant.expand_as(output[1]["wkv"])}

    toy.model.blocks[1].rwkv6.register_forward_hook(freeze)
    found = run("G3.5", toy)
    assert found["cosine at lag 64, blocks.1.rwkv6"] is Verdict.FAIL
    assert found["cosine at lag 64, blocks.0.rwkv6"] is Verdict.PASS


def test_lags_are_counted_in_tokens():
    """States that turn by a fixed angle a token have cosine cos(lag * angle)."""
    toy = subject("rwkv6")
    angle, seen = 0.01, 0

    def turn(module, inputs, output):
        nonlocal seen
        seen += inputs[0].shape[1]
        state = torch.zeros_like(output[1]["wkv"])
        state[..., 0, 0] = torch.cos(torch.tensor(angle * seen))
        state[..., 1, 1] = torch.sin(torch.tensor(angle * seen))
        return output[0], output[1] | {"wkv": state}

    toy.model.blocks[0].rwkv6.register_forward_hook(turn)
    cosines, _ = observe(toy)
    for lag, expected in ((1, 0.99995), (8, 0.9968), (64, 0.8021)):
        assert cosines["blocks.0.rwkv6"][lag].mean() == pytest.approx(expected, abs=1e-4)


@pytest.mark.tiny
def test_dead_and_broken_states_fail():
    state = noise(16, 2, 64, 64)
    assert set(judged(state).values()) == {Verdict.PASS}
    assert judged(1e-9 * state)["state RMS"] is Verdict.FAIL
    assert judged(0 * state)["effective rank"] is Verdict.FAIL
    state[3, 0, 0, 0] = torch.inf
    assert judged(state) == {"non-finite state entries": Verdict.FAIL}


@pytest.mark.tiny
def test_a_state_of_rank_one_fails():
    state = noise(16, 2, 64, 1) @ noise(16, 2, 1, 64)
    assert judged(state)["effective rank"] is Verdict.FAIL


@pytest.mark.tiny
def test_outliers_are_seen_at_any_scale():
    state = noise(16, 1, 64, 64)
    state.view(16, -1)[:, ::60] = 100.0
    assert judged(state)["outlier share"] is Verdict.WARN
    assert judged(1e3 * state)["outlier share"] is Verdict.WARN


@pytest.mark.tiny
def test_a_state_that_keeps_no_past_warns():
    cosines = LIVE | {1: torch.full((16,), 0.1)}
    assert judged(noise(16, 1, 8, 8), cosines)["cosine at lag 1"] is Verdict.WARN
