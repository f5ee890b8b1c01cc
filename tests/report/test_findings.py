"""Findings as a table: what is urgent shows, what is many is one row, nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from groundthink.report import findings, run


def _finding(id: str, verdict: str, value: float, threshold: str, **more) -> dict:
    base = {"id": id, "name": "x", "verdict": verdict, "value": value, "low": value, "high": value}
    return {**base, "threshold": threshold, "unit": "", "n": 1, "note": "", **more}


def _cells(html: str) -> list[str]:
    return [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall("<td.*?</td>", html)]


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("threshold", "shown"),
    [
        ("0.3..3 (warn 0.1..10)", "0.3 to 3 warn 0.1 to 10"),
        ("-0.1..0.1", "−0.1 to 0.1"),
        (">= 0.9", "≥ 0.9"),
        ("<= 0 (warn any)", "≤ 0 warn any"),
        ("0 (warn 0..1e-05)", "0 warn 0 to 1\u00a0×\u00a010⁻⁵"),
        ("", "–"),
    ],
)
def test_thresholds_in_words(threshold: str, shown: str) -> None:
    assert _cells(findings.gates([_finding("G4", "PASS", 1.0, threshold)]))[4] == shown


@pytest.mark.tiny
def test_a_verdict_is_a_word_and_a_sign_beside_its_numbers() -> None:
    band = "0.3..3 (warn 0.1..10)"
    cells = _cells(findings.gates([_finding("G4", "WARN", 0.2, band, low=0.15, high=None, n=20)]))
    assert cells[:3] == ["x", "! WARN", "0.200  0.150 to ∞"]
    assert cells[5] == "n = 20"


@pytest.mark.tiny
def test_gates_stand_in_their_order_and_urgent_findings_first() -> None:
    rows = [_finding("zoo", "PASS", 1, "0..2"), _finding("G2", "PASS", 1, "0..2")]
    rows += [_finding("G2", "FAIL", 3, "0..2"), _finding("G1", "PASS", 0, "0")]
    html = findings.gates(rows)
    assert re.findall(r'scope="rowgroup">(\S+)', html) == ["G1", "G2", "zoo"]
    verdicts = re.findall(r'class="chip (\w+)"', html)
    assert verdicts == ["pass", "fail", "pass", "pass"]


def test_many_passes_are_folded_away_but_there(full_run: Path) -> None:
    html = findings.gates(run.load(full_run).gates)
    shown, folded = html.split("<summary>8 that passed</summary>")
    assert "cosine at lag 64" in shown and "effective rank" not in shown
    assert folded.count("effective rank, blocks.") == 8


def test_many_layers_are_one_row_with_the_gravest_and_all_below() -> None:
    band = "0..0.1 (warn 0..10)"
    rows = [_finding("states", "PASS", 0.05, band, name="norm, blocks.3.rwkv6")]
    rows += [
        _finding("states", "WARN", value, band, name=f"norm, blocks.{i}.rwkv6")
        for i, value in enumerate((0.2, 0.6, 0.3))
    ]
    rows += [_finding("states", "WARN", 0.5, band, name="norm, blocks.0.mamba2")]
    shown, folded, after = re.split("<details>|</details>", findings.gates(rows))
    cells = _cells(shown)
    assert cells[0] == "norm, RWKV-\u20606 worst of 4: layer 1"
    assert cells[1] == "! WARN 3 warn, 1 pass" and cells[2] == "0.600"
    layers = re.findall(r"norm, blocks\.(\d)\.rwkv6", folded)
    assert "<summary>all 4 layers</summary>" in folded and layers == ["0", "1", "2", "3"]
    assert "norm, blocks.0.mamba2" in after, "a single layer is as it was"
