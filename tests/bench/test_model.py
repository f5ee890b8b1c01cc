from __future__ import annotations

from dataclasses import replace

import pytest

from groundthink import records
from groundthink.bench import matrix, model, work
from groundthink.bench.config import BenchModel
from groundthink.errors import UserError
from groundthink.ops.wkv6 import BACKENDS


def found(bench: BenchModel) -> dict[str, dict]:
    return {record["name"]: record for record in records.read(bench.out, "bench")}


def test_speed_memory_and_stability_of_a_small_model(bench: BenchModel, monkeypatch):
    monkeypatch.setattr(model, "STUDY", {"batch_size": 2, "seq_len": 24})
    bench = replace(bench, against=("reference",), steps=60)
    assert model.run(bench) == 0
    rows = found(bench)
    for kind in ("training", "inference"):
        assert rows[f"B1 {kind} 2x24, {bench.model}"]["value"] > 0
        assert rows[f"B1 {kind} 2x24, {bench.model} over reference"]["n"] == 2
        assert rows[f"B2 {kind} memory 2x24, {bench.model}"]["rest"] > 0
    assert rows["B1 decoding 1x1 after 24, reference"]["unit"] == "tok/s"
    b3 = rows["B3 loss change"]
    assert b3["verdict"] == "PASS"
    assert b3["end"] < b3["start"] and b3["n"] == 60 and b3["grad_norm"] > 0
    (origin,) = records.read(bench.out, "provenance")
    assert origin["config"]["batch_size"] == 2 and origin["counts"]["total"] > 0


def test_a_model_that_disagrees_with_its_reference_has_no_speed(bench: BenchModel, monkeypatch):
    def broken(r, k, v, *args):
        y, state = reference(r, k, v, *args)
        return y + 0.1 * v, state  # a scale alone would vanish in the norm of the heads

    reference = BACKENDS["reference"]
    monkeypatch.setitem(BACKENDS, "chunked", broken)
    assert model.run(bench) == 1
    (row,) = found(bench).values()
    assert row["name"] == "parity with the reference loops" and row["verdict"] == "FAIL"


def test_the_matrix_changes_one_thing_and_drops_what_fails_b3(bench: BenchModel, monkeypatch):
    two = {name: matrix.CHANGES[name] for name in ("baseline", "batch 16")}
    monkeypatch.setattr(matrix, "CHANGES", two)
    bench = replace(bench, matrix=True)
    assert model.run(bench) == 0
    rows = found(bench)
    assert rows["baseline, B3 loss change"]["verdict"] == "PASS"
    assert rows["batch 16, training over baseline"]["value"] > 0
    assert rows["batch 16, training memory"]["value"] > 0


def test_a_run_that_blows_up_fails_b3_and_has_no_speed(bench: BenchModel, monkeypatch):
    monkeypatch.setattr(work, "LR", 1e30)
    monkeypatch.setattr(matrix, "CHANGES", {"baseline": {}})
    bench = replace(bench, matrix=True)
    assert model.run(bench) == 1
    rows = found(bench)
    assert rows["baseline, B3 loss change"]["verdict"] == "FAIL"
    assert "not finite" in rows["baseline, B3 loss change"]["note"]
    assert "baseline, training" not in rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"model": "gf-mh-5"}, "unknown model 'gf-mh-5'"),
        ({"against": ("gtp2-5m",)}, "unknown model 'gtp2-5m'"),
    ],
)
@pytest.mark.tiny
def test_wrong_values_get_one_line_before_anything_is_measured(bench, change, message):
    with pytest.raises(UserError, match=message):
        model.run(replace(bench, **change))
