"""`bench ops` times what is equal to fp64, and nothing else."""

from __future__ import annotations

import pytest
import torch

from groundthink.bench import ops
from groundthink.bench.config import BenchOps
from groundthink.bench.measure import Results
from groundthink.errors import UserError
from groundthink.ops.wkv6 import BACKENDS

CPU = torch.device("cpu")
CHUNKED = BACKENDS["chunked"]


@pytest.fixture
def tiny(monkeypatch):
    """A small case with a backend that is wrong by one part in a thousand."""

    def planted(*args):
        y, state = CHUNKED(*args)
        return y * 1.001, state

    monkeypatch.setitem(BACKENDS, "planted", planted)
    draw = ops.partial(ops.wkv6_inputs, "strong", (1, 40, 2, 8))
    monkeypatch.setitem(ops.CASES, "tiny", (ops.wkv6, BACKENDS, draw))


def test_a_wrong_backend_is_not_timed(tiny):
    results = Results("", {})
    assert not ops.measure("tiny", BenchOps(repeats=6), CPU, results, lambda _: None)
    rows = {row["name"]: row for row in results.rows}
    assert "wrong" in rows["tiny, planted"]["note"] and rows["tiny, planted"]["value"] is None
    assert rows["tiny, chunked"]["value"] > 0 and rows["tiny, reference"]["n"] == 6
    assert not any("planted over" in name for name in rows)


def test_the_ratio_is_that_of_the_same_rounds(tiny):
    results = Results("", {})
    ops.measure("tiny", BenchOps(repeats=6), CPU, results, lambda _: None)
    rows = {row["name"]: row for row in results.rows}
    ratio = rows["tiny, chunked over reference"]
    quotient = rows["tiny, reference"]["value"] / rows["tiny, chunked"]["value"]
    assert ratio["q1"] / 2 < quotient < ratio["q3"] * 2


def test_an_unknown_case_is_answered_with_near_names():
    with pytest.raises(UserError, match="did you mean wkv6-strong"):
        ops.run(BenchOps(only=("wkv6-storng",)))
