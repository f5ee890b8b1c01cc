"""G3, activation evolution and the baselines on made-up training records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diagnose.subjects import run, subject

from groundthink.diagnose.gates import GATES
from groundthink.verdicts.verdict import Verdict

pytestmark = pytest.mark.tiny


def curve(steps: int, end: float = 2.0, seed: int = 0) -> list[dict]:
    """Train records of a loss that falls from 4 to `end` with noise, and a calm gradient."""
    rng = np.random.default_rng(seed)
    loss = end + (4 - end) * np.exp(-np.arange(steps) / 200) + 0.05 * rng.normal(size=steps)
    norm = np.exp(0.2 * rng.normal(size=steps))
    return [
        {"kind": "train", "step": i + 1, "loss": float(a), "grad_norm": float(b)}
        for i, (a, b) in enumerate(zip(loss, norm, strict=True))
    ]


@pytest.fixture(scope="module")
def toy():
    return subject("hy", shape=(1, 1, 4))


def with_records(toy, records):
    return type(toy)(toy.model, toy.batches, steps=5, records=records)


def test_a_falling_loss_passes(toy):
    found = run("G3", with_records(toy, curve(1200)))
    assert set(found.values()) == {Verdict.PASS}, found


def test_a_short_run_is_inconclusive_and_says_how_many_steps_are_missing(toy):
    findings = GATES["G3"](with_records(toy, curve(400)))
    verdicts = [finding.verdict for finding in findings]
    assert verdicts == [Verdict.PASS] + 3 * [Verdict.INCONCLUSIVE]
    assert all("needs 600 more training steps" in finding.note for finding in findings[1:])
    assert "needs 980 more" in GATES["G3"](with_records(toy, curve(20)))[1].note


def test_a_rising_and_a_flat_loss_do_not_pass(toy):
    rising = run("G3", with_records(toy, curve(1200, end=6.0)))
    assert rising["loss slope"] is rising["loss drop"] is Verdict.FAIL
    flat = run("G3", with_records(toy, curve(1200, end=4.0)))
    assert flat["loss drop"] is Verdict.FAIL
    assert flat["loss slope"] is not Verdict.PASS


def test_a_nan_fails_however_short_the_run(toy):
    records = curve(50)
    records[30]["loss"] = None
    assert run("G3", with_records(toy, records))["non-finite steps"] is Verdict.FAIL


def test_a_run_stopped_by_nan_fails_until_the_step_is_made_good(toy):
    stopped = [*curve(50), {"kind": "event", "what": "nonfinite", "step": 51, "note": ""}]
    assert run("G3", with_records(toy, stopped))["non-finite steps"] is Verdict.FAIL
    resumed = [*stopped, *curve(60)[50:]]
    assert run("G3", with_records(toy, resumed))["non-finite steps"] is Verdict.PASS


def test_steps_that_fp16_left_out_are_neither_nan_nor_spikes(toy):
    records = curve(1200)
    for row in records[5:1200:100]:
        row["grad_norm"] = None
    assert set(run("G3", with_records(toy, records)).values()) == {Verdict.PASS}


def test_spikes_are_counted_against_the_running_median(toy):
    records = curve(1200)
    for i in range(100, 1200, 10):
        records[i]["grad_norm"] = 10.0
    assert run("G3", with_records(toy, records))["gradient spikes"] is Verdict.FAIL
    slow = curve(1200)
    for i, row in enumerate(slow):
        row["grad_norm"] *= math.exp(i / 200)
    assert run("G3", with_records(toy, slow))["gradient spikes"] is Verdict.PASS


def balances(rwkv: list[float]) -> list[dict]:
    return [
        {"kind": "balance", "step": i, "branch_rms": {"rwkv6": [a, 0.3], "mamba2": [None, 0.5]}}
        for i, a in enumerate(rwkv)
    ]


def test_a_branch_that_collapses_in_training_fails(toy):
    found = run("evolution", with_records(toy, balances([1.0] * 8 + [1e-4] * 8)))
    assert found["output growth, blocks.0.rwkv6"] is Verdict.FAIL
    assert found["output growth, blocks.1.mamba2"] is Verdict.PASS
    assert "output growth, blocks.0.mamba2" not in found
    (skipped,) = GATES["evolution"](with_records(toy, balances([1.0] * 4)))
    assert skipped.verdict is Verdict.INCONCLUSIVE


def scores(loss: float, se: float | None) -> list[dict]:
    val = {"kind": "val", "split": "val", "step": 9, "loss": loss, "se": se, "tokens": 1000}
    worse = {**val, "step": 4, "loss": loss + 1}
    levels = {"uniform": 4.6, "unigram": 3.3, "bigram": 2.5}
    return [{"kind": "baseline", "split": "val", **levels}, worse, val]


@pytest.mark.parametrize(
    ("loss", "se", "verdicts"),
    [
        (2.0, 0.05, "PASS PASS PASS"),
        (2.8, 0.05, "PASS PASS WARN"),
        (3.6, 0.05, "PASS FAIL WARN"),
        (4.9, 0.05, "FAIL FAIL WARN"),
        (3.3, 0.05, "PASS INCONCLUSIVE WARN"),
        (2.0, None, "INCONCLUSIVE INCONCLUSIVE INCONCLUSIVE"),
    ],
)
def test_the_best_validation_is_held_against_the_baselines(toy, loss, se, verdicts):
    found = run("baseline", with_records(toy, scores(loss, se)))
    assert " ".join(found.values()) == verdicts


def test_no_validation_is_no_pass(toy):
    assert set(run("baseline", with_records(toy, [])).values()) == {Verdict.INCONCLUSIVE}
