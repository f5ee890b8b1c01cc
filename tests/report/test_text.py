from __future__ import annotations

import math

import pytest

from groundthink.report import interval, text
from groundthink.report.thresholds import ranges
from groundthink.verdicts.thresholds import TABLE

pytestmark = pytest.mark.tiny


@pytest.mark.parametrize(
    ("value", "shown"),
    [(2.3114, "2.31"), (0.9996, "1.00"), (18_420, "18,420"), (0, "0"), (-0.28, "−0.280")]
    + [(3e-7, "3\u00a0×\u00a010⁻⁷"), (99_999.9, "100,000"), (None, "–"), (math.nan, "–")],
)
def test_significant_figures(value: float | None, shown: str) -> None:
    assert text.sig(value) == shown


def test_sizes_times_and_shares() -> None:
    assert [text.compact(n) for n in (5_224_960, 474_264, 124e6, 97)] == [
        "5.2M",
        "474k",
        "124M",
        "97.0",
    ]
    assert [text.duration(s) for s in (4.13, 44, 192, 7_500)] == [
        "4.1 s",
        "44 s",
        "3 min 12 s",
        "2 h 5 min",
    ]
    assert [text.percent(s) for s in (0.61, 0.00039, 1)] == [
        "61\u00a0%",
        "0.039\u00a0%",
        "100\u00a0%",
    ]
    assert [text.short(v) for v in (0.3, 3.0, 2e-3, 1000)] == ["0.3", "3", "0.002", "1,000"]


def test_hostile_text_becomes_plain_text() -> None:
    hostile = "</script><img src=x onerror=alert(1)>\x00\x1b\ud800'\"&"
    shown = text.esc(hostile)
    shown.encode("utf-8")
    assert not set(shown) & set("<>\"'\x00\x1b")
    assert "␀␛\ufffd" in shown


@pytest.mark.parametrize("threshold", TABLE, ids=lambda t: f"{t.gate} {t.quantity}")
def test_every_threshold_reads_back(threshold) -> None:
    passes, warns = ranges(threshold.text)
    assert passes == pytest.approx(threshold.passes)
    assert warns == pytest.approx(threshold.warns)


def test_interval_lies_where_the_numbers_say() -> None:
    svg = interval.bar(1.0, 0.1, 10.0, "0.1..10")
    assert 'cx="90.0"' in svg and 'x1="10.0" x2="170.0"' in svg, "log scale, value in the middle"
    svg = interval.bar(0.0, None, None, "-1..1")
    assert 'cx="90.0"' in svg and 'x1="0.0" x2="180.0"' in svg, "unbounded on both sides"
    assert interval.bar(None, None, None, "") == text.NONE
