from __future__ import annotations

from dataclasses import replace

import pytest

from groundthink import records
from groundthink.bench import grid, matrix, model
from groundthink.bench.config import BenchModel
from groundthink.errors import UserError
from groundthink.lab import benching
from groundthink.ops.wkv6 import BACKENDS


def found(bench: BenchModel) -> dict[str, dict]:
    return {record["name"]: record for record in records.read(bench.out, "bench")}


@pytest.mark.slow
def test_speed_memory_and_stability_of_a_small_model(bench: BenchModel, monkeypatch):
    monkeypatch.setattr(model, "STUDY", {"batch_size": 2, "seq_len": 24})
    bench = replace(bench, against=("reference",), steps=60)
    assert benching.model(bench) == 0
    rows = found(bench)
    for kind in ("training", "inference"):
        assert rows[f"B1 {kind} 2x24, {bench.model}"]["value"] > 0
        assert rows[f"B1 {kind} 2x24, {bench.model} over reference"]["n"] == 2
        assert rows[f"B2 {kind} memory 2x24, {bench.model}"]["peak"] > 0
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
    assert benching.model(bench) == 1
    (row,) = found(bench).values()
    assert row["name"].startswith("parity with the reference loops") and row["verdict"] == "FAIL"


@pytest.mark.slow
def test_the_matrix_changes_one_thing_and_drops_what_fails_b3(bench: BenchModel, monkeypatch):
    two = {name: matrix.CHANGES[name] for name in ("baseline", "batch 16")}
    monkeypatch.setattr(matrix, "CHANGES", two)
    bench = replace(bench, matrix=True)
    assert benching.model(bench) == 0
    rows = found(bench)
    assert rows["baseline, B3 loss change"]["verdict"] == "PASS"
    assert rows["batch 16, training over baseline"]["value"] > 0
    assert rows["batch 16, training memory"]["value"] > 0


def test_a_run_that_blows_up_fails_b3_and_has_no_speed(bench: BenchModel, monkeypatch):
    monkeypatch.setattr(benching.Training, "config", replace(benching.Training.config, lr=1e30))
    monkeypatch.setattr(matrix, "CHANGES", {"baseline": {}})
    bench = replace(bench, matrix=True)
    assert benching.model(bench) == 1
    rows = found(bench)
    assert rows["baseline, B3 loss change"]["verdict"] == "FAIL"
    assert "not finite" in rows["baseline, B3 loss change"]["note"]
    assert "baseline, training" not in rows


def test_a_sweep_holds_the_tokens_of_a_step_and_says_where_the_model_leads(bench):
    bench = replace(bench, sweep=(8, 24), against=("gpt2-tiny",))
    assert benching.model(bench) == 0
    rows = found(bench)
    assert rows["B1 training 6x8, gpt2-tiny"]["value"] > 0
    assert rows[f"B1 training 2x24, {bench.model} over gpt2-tiny"]["n"] == 2
    assert 0 < rows[f"slowest length over fastest, {bench.model}"]["value"] <= 1
    assert rows[f"{bench.model} passes gpt2-tiny at length"]["value"] in (8, 24, None)


def test_a_profile_is_a_trace_and_a_table_of_one_step(bench: BenchModel, tmp_path):
    asked = replace(bench, batches=(1,), seq_len=8, profile=str(tmp_path / "traces"))
    assert benching.model(asked) == 0
    (trace,) = (tmp_path / "traces").glob("small.yaml 1x8.json.gz")
    assert trace.stat().st_size > 1000
    assert "aten::" in (tmp_path / "traces" / "small.yaml 1x8.txt").read_text()


def test_a_grid_crosses_batch_sizes_with_precisions(bench: BenchModel):
    points = grid.points(replace(bench, batches=(1, 4), precisions=("fp32", "bf16")))
    assert [(p.batch_size, p.precision) for p in points] == [
        (1, "fp32"), (4, "fp32"), (1, "bf16"), (4, "bf16"),
    ]  # fmt: skip
    assert {p.seq_len for p in points} == {bench.seq_len}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"model": "gf-mh-5"}, "unknown model 'gf-mh-5'"),
        ({"against": ("gtp2-5m",)}, "unknown model 'gtp2-5m'"),
        ({"only": ("B4",)}, "unknown part 'B4'"),
        ({"sweep": (7,)}, "length 7 does not divide"),
        ({"sweep": (8,), "batches": (2,)}, "not both"),
        ({"precisions": ("fp8",)}, "unknown precision"),
    ],
)
@pytest.mark.tiny
def test_wrong_values_get_one_line_before_anything_is_measured(bench, change, message):
    with pytest.raises(UserError, match=message):
        benching.model(replace(bench, **change))
