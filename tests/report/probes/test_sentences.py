"""What the first screen says is what the records hold, and nothing where they hold nothing."""

from __future__ import annotations

import pytest
from report.probes.test_balance import made

from groundthink.report.probes.page import PROBES
from groundthink.report.probes.sentences import SAID

pytestmark = pytest.mark.tiny


def finding(name: str, value: float, n: int = 8) -> dict:
    return {"name": name, "value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def said(name: str, **rows: list[dict]) -> str:
    return " ".join(SAID[name](rows))


def test_every_probe_can_speak_and_says_nothing_of_nothing() -> None:
    assert tuple(SAID) == PROBES
    assert not any(said(name) for name in PROBES)


def test_balance_names_the_larger_branch_first_and_how_they_go_together() -> None:
    words = said("balance", **made())
    assert "The output of Mamba-2 is worth 1.5 nats (1.5 to 1.5) a token, that of RWKV-6" in words
    assert "either does alone, interaction −0.40 nats (−0.41 to −0.39)" in words
    alone = said("balance", **made(("mamba2",)))
    assert alone == "Emptying the memory once costs, in nats a token: Mamba-2 0.50 (0.49 to 0.51)."


def test_numbers_come_with_their_intervals_and_skipped_ones_not_at_all() -> None:
    rows = [finding("recall", 0.5), finding("share read, rwkv6", 0.9)]
    rows += [finding("share read, mamba2", 0.2), finding("information, rwkv6", 0.3, n=0)]
    words = said("memory", finding=rows)
    assert "the value 0.50 nats (0.40 to 0.60) likelier" in words
    assert "90\xa0% (80\xa0% to 100\xa0%) from RWKV-6, 20\xa0%" in words
    assert "A probe" not in words


def test_drift_counts_alarms_and_states() -> None:
    series = [{"name": "training loss", "alarm": 1400}, {"name": "mean gate", "alarm": None}]
    turn = [{"where": f"blocks.{i}.rwkv6"} for i in range(2)]
    found = [finding(f"p of no drift over turns, blocks.{i}.rwkv6", p) for i, p in ((0, 0), (1, 1))]
    words = said("drift", series=series, turn=turn, finding=found)
    assert "alarm for training loss at step 1,400." in words and "1 of 2 states drift" in words
