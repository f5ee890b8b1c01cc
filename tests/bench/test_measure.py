from __future__ import annotations

import json

import pytest
import torch

from groundthink.bench.measure import race, ratio, speed, stopwatch
from groundthink.bench.output import Results, Screen

pytestmark = pytest.mark.tiny


def recorder(log: list[str], seconds: dict[str, float]):
    def lap(name: str) -> float:
        log.append(name)
        return seconds[name]

    return {name: lambda name=name: lap(name) for name in seconds}


def test_every_round_runs_each_contestant_once_and_starts_with_another():
    log: list[str] = []
    laps = recorder(log, {"a": 1.0, "b": 2.0, "c": 3.0})
    found = race(laps, rounds=3, warmup=1)
    assert log == [*"abc", *"abc", *"bca", *"cab"]  # the warm-up comes first
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}


def test_a_slow_contestant_leaves_early_and_is_compared_by_the_rounds_it_ran():
    log: list[str] = []
    laps = recorder(log, {"fast": 0.25, "slow": 4.0})
    found = race(laps, rounds=50, warmup=3, seconds=2.0)
    assert (len(found["fast"]), len(found["slow"])) == (8, 3)
    assert log[:2] == ["fast", "slow"] and len(log) == 2 + 8 + 3  # one lap warms up
    gain = ratio(found["fast"], found["slow"])
    assert (gain["value"], gain["n"]) == (16, 3)


def test_what_takes_too_long_is_broken_off_also_while_it_computes_gradients():
    import time

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            time.sleep(60)

    start = time.monotonic()
    results = Results("", {})
    with results.attempt("a peer", {"who": "it"}, 0.05):
        Slow.apply(torch.ones(1, requires_grad=True)).backward()
    with results.attempt("another", {"who": "it"}, 60):
        raise ValueError("no such device\nand more")
    assert time.monotonic() - start < 30
    first, second = results.rows
    assert (first["who"], first["value"]) == ("it", None) and "not ready after 0.05 s" in first[
        "note"
    ]
    assert second["note"] == "cannot run: no such device"


def test_a_slow_spell_of_the_machine_does_not_move_the_ratio():
    spell = [1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 9.0]
    gain = ratio([2 * s for s in spell], [3 * s for s in spell])
    assert gain["value"] == gain["low"] == gain["high"] == 1.5


def test_speed_is_the_median_with_quartiles():
    rate = speed([0.5, 1.0, 2.0, 4.0, 0.25], work=100)
    assert (rate["value"], rate["q1"], rate["q3"], rate["n"]) == (100, 50, 200, 5)


def test_a_stopwatch_counts_the_whole_action():
    import time

    assert 0.02 <= stopwatch(lambda: time.sleep(0.02), torch.device("cpu")) < 1


def test_records_are_on_disk_and_on_the_screen(tmp_path, capsys):
    out = tmp_path / "new" / "bench.jsonl"
    results = Results(str(out), {"seed": 3})
    results.add("B1 training", "tok/s", speed([0.5] * 6, 10_000), "a note")
    results.add("B1 decoding", "tok/s", speed([0.5, 0.5], 10), "too few for an interval")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["provenance", "bench", "bench"]
    assert lines[1]["value"] == lines[1]["low"] == 20_000
    assert lines[2]["low"] is None
    Screen().results("title", results.rows)
    text = capsys.readouterr().out
    assert "20,000 tok/s" in text and "inf" not in text


def test_columns_without_entries_are_left_out(capsys):
    Screen().table("a table", ["", "ms", "launches", "note"], [["ours", "1.5", "", "fine"]])
    text = capsys.readouterr().out
    assert "1.5" in text and "fine" in text and "launches" not in text
