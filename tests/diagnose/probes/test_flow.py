"""Known decompositions are recovered, and gradients by states are what they are called."""

from __future__ import annotations

import math
import weakref
from importlib import import_module

import pytest
import torch
from diagnose.probes import planted
from toys import randomized, small

from groundthink.diagnose.probes import information as readers
from groundthink.diagnose.probes.coupling import BEFORE, LENGTH, SOON, TAUS, coupling, spearman
from groundthink.diagnose.probes.flow import flow, parts, positions, question, ranks, sources
from groundthink.diagnose.probes.information import information
from groundthink.diagnose.probes.tracer import branch_sites, matrix
from groundthink.layers.state import State
from groundthink.models.build import build
from groundthink.verdicts.statistics import slope

ROWS = 1200


def bits(seed: int) -> torch.Tensor:
    return torch.randint(0, 2, (ROWS,), generator=torch.Generator().manual_seed(seed))


def vectors(bit: torch.Tensor, seed: int) -> torch.Tensor:
    """Six noisy directions, one of which tells the bit."""
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(seed))
    x[:, 2] = 8 * (2 * bit - 1) + x[:, 2]
    return (x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(seed + 1)))[None]


A, B, NOISE = bits(0), bits(1), bits(2)
KNOWN = {
    "xor": (A, B, A ^ B, {"synergistic": 1.0}),
    "copy": (A, A, A, {"redundant": 1.0}),
    "unique": (A, NOISE, A, {"unique_rwkv6": 1.0}),
    "the other": (NOISE, B, B, {"unique_mamba2": 1.0}),
    "and": (A, B, A & B, {"redundant": 0.311, "synergistic": 0.5}),
    "neither": (A, B, NOISE, {}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_decompositions_are_those_that_are_known(name: str) -> None:
    a, b, y, expected = KNOWN[name]
    documents = torch.arange(ROWS) // 20
    x = sources(vectors(a, 10), vectors(b, 20), dims=32, documents=documents)
    found = information(*x, y=y, groups=documents, classes=2).mean((1, 2))
    means = dict(zip(("rwkv6", "mamba2", "both"), found.tolist(), strict=True))
    for part, value in parts(means).items():
        assert value == pytest.approx(expected.get(part, 0), abs=0.08), part


def test_labels_are_the_frequent_tokens_at_an_offset() -> None:
    texts = torch.arange(170).remainder(20).repeat(3, 1)
    texts[:, ::2] = 5
    asked = question(texts, [0, 1, 2], 1, ranks(texts))
    at = texts[:, [p + 1 for p in positions()]].flatten()
    assert torch.equal(asked.y == 0, at[asked.kept] == 5)
    assert int(asked.y.max()) <= 15 and len(asked.documents) == int(asked.kept.sum())


def test_the_states_of_a_shard_are_let_go_before_the_next_are_read(monkeypatch) -> None:
    module, alive, most = import_module("groundthink.diagnose.probes.flow"), [], []
    genuine = module.read

    def read(model, texts):
        states = genuine(model, texts)
        alive.append([weakref.ref(x) for x in states.values()])
        most.append(sum(ref() is not None for refs in alive for ref in refs))
        return states

    monkeypatch.setattr(module, "read", read)
    monkeypatch.setattr(readers, "SHARD", 10)
    for name, value in (("VARIABLES", {"current": 0}), ("READS", 8), ("FEWEST", 2)):
        monkeypatch.setattr(module, name, value)
    toy = planted.subject(planted.model(1), texts=30, length=170, tokens=16)
    texts = torch.stack(list(toy.documents))
    with torch.no_grad():
        rows, _ = module._known(toy, texts, list(range(30)))
    sites = len(branch_sites(toy.model))
    assert most == [sites, 2 * sites] * 3
    about = next(row for kind, row in rows if kind == "flow_variable")
    assert about["texts"] == 30 and about["rows"] == 30 * len(positions())


@pytest.fixture(scope="module")
def two_layers():
    subject = planted.subject(planted.model(20, 20), texts=4, length=LENGTH)
    return subject.model, torch.stack(list(subject.documents))


def test_value_is_the_directional_derivative_of_the_loss(two_layers) -> None:
    model, texts = two_layers
    site = branch_sites(model)[1]
    with torch.no_grad():
        state = model.features(texts[:, :BEFORE])[1]

        def loss(scale: float) -> torch.Tensor:
            own = matrix(state, site)
            tensors = dict(state.items())
            name = next(name for name, x in tensors.items() if x is own)
            scaled = State.from_items(tensors | {name: scale * own})
            tokens = texts[:, BEFORE : BEFORE + SOON + 1]
            logits = model(tokens[:, :-1], scaled)[0].double()
            gold = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
            return -gold.sum((1, 2))

        slope = (loss(1.01) - loss(0.99)) / 0.02
        found = coupling(model, texts)[site]
        torch.testing.assert_close(-found.value, slope.float(), atol=1e-3, rtol=0.02)
        torch.testing.assert_close(found.zeroed, (loss(0) - loss(1)).float(), atol=1e-4, rtol=1e-3)


def test_credit_falls_as_fast_as_the_decays() -> None:
    tau = 12.0
    subject = planted.subject(planted.model(tau), texts=24, length=LENGTH)
    for state in coupling(subject.model, torch.stack(list(subject.documents))).values():
        rate, _ = slope(TAUS[:-1], state.credit.mean(0).log()[:-1])
        assert -1 / rate.value == pytest.approx(tau, rel=0.2)


def test_a_state_that_nobody_hears_gets_no_credit() -> None:
    model = planted.model(20, 20)
    planted.silence(model.blocks[1])
    texts = torch.stack(list(planted.subject(model, texts=4, length=LENGTH).documents))
    found = coupling(model, texts)
    for name in ("credit", "value", "zeroed", "share", "write"):
        assert getattr(found[1, "rwkv6"], name).abs().max() < 1e-5
        assert getattr(found[0, "rwkv6"], name).abs().max() > 1e-3


def test_rank_correlation() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(x, x.exp()) == 1 and spearman(x, -x) == -1
    assert spearman(x, torch.ones(4)) == 0
    tied = spearman(x, torch.tensor([1.0, 1.0, 2.0, 2.0]))
    assert float(tied) == pytest.approx(2 / math.sqrt(5))


@pytest.mark.slow
def test_the_probe_gives_records_and_controls() -> None:
    rows = flow(planted.subject(planted.model(1, 50), texts=10, length=170, tokens=16))
    kinds = [kind for kind, _ in rows]
    assert (kinds.count("flow"), kinds.count("flow_variable"), kinds.count("coupling")) == (6, 3, 4)
    found = {row["variable"]: row for kind, row in rows if kind == "flow" and not row["layer"]}
    assert found["current"]["both"]["value"] > 0.5 > abs(found["current"]["shuffled"]["value"])
    assert found["next"]["both"]["value"] == pytest.approx(0, abs=0.1), "the text is random"
    names = {row["name"] for kind, row in rows if kind == "finding"}
    assert names >= {"shuffled information, next", "gain over untrained", "coupling share, rwkv6"}


def test_what_does_not_apply_is_skipped_and_too_little_is_said() -> None:
    gpt2 = randomized(build(small("gpt2", context_length=256))).eval()
    ((kind, row),) = flow(planted.subject(gpt2, texts=8, length=170))
    assert kind == "finding" and row["verdict"] == "INCONCLUSIVE"
    pure = randomized(build(small("rwkv6"))).eval()
    rows = flow(planted.subject(pure, texts=8, length=170))
    notes = {row["name"]: row["note"] for kind, row in rows if kind == "finding"}
    assert "--samples" in notes["information, next"]
    assert {row["branch"] for kind, row in rows if kind == "coupling"} == {"rwkv6"}
