"""The state columns: known answers on made-up states, and the true states of real models."""

from __future__ import annotations

import math

import pytest
import torch
from diagnose.subjects import text
from torch import nn
from toys import randomized, small

from groundthink.diagnose.states import States, entropy, hidden_entropy, norm
from groundthink.layers.state import State
from groundthink.models.build import build

COLUMNS = {
    *("rwkv_state_norm", "mamba_state_norm", "state_ratio", "gate", "rwkv_state_var"),
    *("mamba_state_var", "activation_ratio", "state_entropy", "update_magnitude", "norm_stability"),
    "hidden_entropy",
}
BATCHES = [batch.tokens for batch in text(4, 2, 24)]


def observe(model: nn.Module, observer: States, tokens, state=None):
    observer.start(model)
    _, state = model(tokens, state)
    return observer.finish(model), state


def test_the_columns_hold_the_true_state():
    model = randomized(build(small("gf-mh")))
    ((kind, fields),), state = observe(model, States(1), BATCHES[0])
    assert kind == "states"
    assert set(fields) == COLUMNS
    norms = torch.stack([layer["rwkv6"]["wkv"].flatten(1).norm(dim=1) for layer in state.layers])
    assert fields["rwkv_state_norm"] == pytest.approx(norms.mean().item(), rel=1e-5)
    assert fields["state_ratio"] == fields["rwkv_state_norm"] / fields["mamba_state_norm"]
    assert 0 < fields["state_entropy"] < 1
    assert fields["update_magnitude"] is fields["norm_stability"] is None


def test_updates_are_relative_to_the_state_observed_before():
    model, observer = randomized(build(small("rwkv6"))), States(1)
    _, first = observe(model, observer, BATCHES[0])
    ((_, fields),), second = observe(model, observer, BATCHES[1], first)
    pairs = zip(first.part("rwkv6", "wkv"), second.part("rwkv6", "wkv"), strict=True)
    expected = sum(((b - a).norm() / a.norm()).item() for a, b in pairs) / 2
    assert fields["update_magnitude"] == pytest.approx(expected, rel=1e-5)
    assert fields["norm_stability"] > 0


def test_an_unchanged_state_is_stable():
    model, observer = randomized(build(small("mamba2"))), States(1)
    for _ in range(3):
        ((_, fields),), _ = observe(model, observer, BATCHES[0])
    assert fields["update_magnitude"] == 0
    assert fields["norm_stability"] == pytest.approx(0, abs=1e-6)


def test_a_new_batch_size_starts_the_updates_anew():
    model, observer = randomized(build(small("rwkv6"))), States(1)
    observe(model, observer, BATCHES[0])
    ((_, fields),), _ = observe(model, observer, BATCHES[0][:1])
    assert fields["update_magnitude"] is None


def test_pure_models_have_the_columns_of_their_branch():
    ((_, fields),), _ = observe(randomized(build(small("mamba2"))), States(1), BATCHES[0])
    assert "rwkv_state_norm" not in fields
    assert fields["state_ratio"] is None
    assert "gate" not in fields
    assert observe(build(small("gpt2")), States(1), BATCHES[0])[0] == []


def test_nothing_of_the_model_is_kept_or_changed():
    model = randomized(build(small("gf")))
    before, _ = model(BATCHES[0])
    observer = States(1)
    _, state = observe(model, observer, BATCHES[0])
    assert torch.equal(model(BATCHES[0])[0], before)
    assert not any(module._forward_hooks for module in model.modules())
    assert isinstance(state, State)
    assert not any(x.requires_grad for x in observer._before)


@pytest.mark.tiny
def test_entropy_of_known_states():
    even = torch.full((3, 2, 4, 4), -7.0)
    single = torch.zeros(3, 2, 4, 4)
    single[:, 0, 0, 0] = 5
    half = torch.zeros(3, 2, 4, 4)
    half[..., :2] = 3
    expected = [1, 0, math.log(16) / math.log(32)]
    assert entropy(torch.stack((even, single, half))).tolist() == pytest.approx(expected)


@pytest.mark.tiny
def test_hidden_entropy_is_one_where_no_channel_stands_out():
    x = torch.zeros(2, 3, 8)
    x[1, :, 0] = 1e3
    assert hidden_entropy(x[:1]).item() == pytest.approx(1)
    assert hidden_entropy(x).item() == pytest.approx(1 / 2)


@pytest.mark.tiny
def test_norm_is_the_mean_over_the_batch():
    state = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 3.0)])
    assert norm(torch.stack((state, 2 * state))).tolist() == pytest.approx([4, 8])
