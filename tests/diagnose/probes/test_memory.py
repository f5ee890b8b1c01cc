"""Memory that was put into a model by hand is found where it is, as long as it lasts."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from diagnose.probes import planted
from toys import randomized, small

from groundthink.diagnose.probes import information
from groundthink.diagnose.probes.curves import half_life
from groundthink.diagnose.probes.memory import memory, probed
from groundthink.diagnose.probes.retention import retention
from groundthink.diagnose.probes.tracer import PREFIX, WHOLE, choose, setting, swapped, trace
from groundthink.errors import UserError
from groundthink.models.build import build
from groundthink.verdicts.statistics import slope


@pytest.fixture(scope="module")
def localised():
    """Only RWKV-6 of the middle layer keeps anything, and nobody above it hears its own mixers."""
    model = planted.model(0, 0, 0)
    with torch.no_grad():
        model.blocks[1].rwkv6.time_decay.fill_(-math.log(1000))
    planted.silence(model.blocks[2])
    return planted.subject(model, texts=24)


@pytest.fixture(scope="module")
def traced(localised):
    distances, texts, clusters = setting(localised)
    return distances, clusters, trace(localised.model, texts, distances, choose(localised))


def test_a_fact_in_one_layer_is_read_from_that_layer_alone(traced) -> None:
    distances, _, found = traced
    late = swapped(distances).index(16)
    whole = found.moved[WHOLE][:, late]
    share = {
        place: float(moved[:, late].mean() / whole.mean()) for place, moved in found.moved.items()
    }
    assert float(whole.abs().mean()) > 1e-3
    for place in ((1, "rwkv6"), (None, "rwkv6"), WHOLE):
        assert share.pop(place) == pytest.approx(1, abs=1e-3)
    assert share == pytest.approx(dict.fromkeys(share, 0), abs=1e-3)


def test_a_whole_exchange_is_the_other_run(traced) -> None:
    distances, _, found = traced
    asked = found.log_p[: len(found.moved[WHOLE]), 1::2, :2, :2]
    preference = asked[..., 0] - asked[..., 1]
    difference = preference[..., 0] - preference[..., 1]
    torch.testing.assert_close(found.moved[WHOLE], difference, atol=1e-5, rtol=1e-3)


def test_a_fact_is_probed_where_it_is_kept(traced) -> None:
    distances, clusters, found = traced
    bits, control = probed(found.states, clusters)
    late = dict(zip(found.states, bits[:, :, distances.index(32)].mean(1).tolist(), strict=True))
    assert late[1, "rwkv6"] > 0.15
    assert max(late[0, "rwkv6"], late[0, "mamba2"], late[1, "mamba2"]) < 0.05
    assert float(control.mean()) == pytest.approx(0, abs=0.03)


def test_set_time_constants_are_predicted_and_measured() -> None:
    """The slope of measured over predicted log retention is one."""
    predicted, measured = {}, {}
    for tau in (5.0, 20.0, 80.0):
        subject = planted.subject(planted.model(tau), texts=6)
        distances, texts, _ = setting(subject)
        expected = torch.tensor(distances).div(-tau).exp()
        late = slice(distances.index(4), None)  # token shift and convolution write up to there
        kept = retention(subject.model, texts, PREFIX, distances)
        found = trace(subject.model, texts, distances, choose(subject)).kept
        for site in found:
            half = torch.full_like(kept[site].half_life, tau * math.log(2))
            torch.testing.assert_close(kept[site].half_life, half)
            torch.testing.assert_close(kept[site].kept.mean(1), expected)
            mean = found[site].mean(0)[late]
            predicted.setdefault(site, []).extend((expected[late] / expected[late][0]).log())
            measured.setdefault(site, []).extend((mean / mean[0]).log())
    for site in ((0, "rwkv6"), (0, "mamba2")):
        assert slope(predicted[site], measured[site])[0].value == pytest.approx(1, abs=1e-3)


def test_half_life_is_that_of_an_exponential_or_beyond_the_data() -> None:
    at = [0, 1, 2, 4, 8, 16, 32]
    curves = np.exp(-np.array(at)[:, None] / np.array([3.0, 12.0, 100.0]))
    assert half_life(at, curves) == pytest.approx([3 * math.log(2), 12 * math.log(2), math.inf])
    assert half_life(at, [1, 4, 4, 3, 0, 0, 0]) == pytest.approx(4 + 4 / 3)


def test_the_probe_gives_records_for_every_layer_and_branch() -> None:
    rows = memory(planted.subject(planted.model(0, 100), texts=16))
    kinds = [kind for kind, _ in rows]
    assert (kinds.count("memory"), kinds.count("recall"), kinds.count("read")) == (4, 1, 7)
    verdicts = {row["name"]: row["verdict"] for kind, row in rows if kind == "finding"}
    assert verdicts["error of a whole exchange"] == "PASS"
    assert verdicts.keys() >= {"recall", "information, rwkv6", "shuffled information"}


def test_few_texts_are_not_enough_for_a_probe() -> None:
    rows = memory(planted.subject(planted.model(100), texts=8))
    notes = {row["name"]: row["note"] for kind, row in rows if kind == "finding"}
    assert "--samples 15" in notes["information"]


def test_attention_is_exchanged_but_has_no_state_to_probe() -> None:
    model = randomized(build(small("gpt2", context_length=64))).eval()
    rows = memory(planted.subject(model, texts=8))
    parts = {(row["layer"], row["part"]) for kind, row in rows if kind == "read"}
    assert parts == {(0, "attention"), (1, "attention"), (None, "attention"), (None, "all")}
    notes = {row["name"]: row["note"] for kind, row in rows if kind == "finding"}
    assert notes["information"].startswith("skipped")


def test_a_short_text_is_refused() -> None:
    with pytest.raises(UserError, match="longer text"):
        memory(planted.subject(planted.model(1), texts=8, length=40))


def test_lengths_that_were_asked_for_are_measured_or_refused() -> None:
    toy = planted.subject(planted.model(100), texts=8, lengths=(5, 24))
    recall = next(row for kind, row in memory(toy) if kind == "recall")
    assert recall["distances"] == [0, 1, 2, 5, 16, 24]
    with pytest.raises(UserError, match="longer text"):
        memory(replace(toy, lengths=(50,)))


def test_the_states_of_a_shard_are_let_go_before_the_next_are_read(monkeypatch) -> None:
    module, alive = import_module("groundthink.diagnose.probes.memory"), []
    toy = planted.subject(planted.model(100), texts=32)
    distances, texts, clusters = setting(toy)
    asked = toy.model, texts, clusters, distances, choose(toy)
    whole, _ = module.follow(*asked)

    def watched(*args):
        assert not any(ref() is not None for ref in alive)
        found = trace(*args)
        alive.extend(weakref.ref(x) for x in found.states.values())
        return found

    monkeypatch.setattr(module, "trace", watched)
    monkeypatch.setattr(information, "SHARD", 16)
    parts, known = module.follow(*asked)
    torch.testing.assert_close(parts.log_p, whole.log_p)
    assert parts.states == whole.states == {} and len(alive) == 4
    assert known and known[0].shape == (2, 32, len(distances))
