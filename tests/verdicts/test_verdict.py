"""Verdicts at every edge of every threshold, and their logic on intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from groundthink.verdicts.statistics import Interval, exact, t_mean, unknown
from groundthink.verdicts.thresholds import TABLE, THRESHOLDS, Threshold
from groundthink.verdicts.verdict import Verdict, decide, judge, samples_needed, skipped

pytestmark = pytest.mark.tiny

RULE = Threshold("X", "x", "", (1.0, 2.0), (0.0, 4.0), "an example")
EDGES = [
    pytest.param(
        t, edge, outward, id=f"{t.gate}-{t.quantity}-{edge:g}-{'up' if outward > 0 else 'down'}"
    )
    for t in TABLE
    for edges in {t.passes, t.warns}
    for edge, outward in zip(edges, (-math.inf, math.inf), strict=True)
    if math.isfinite(edge)
]


@pytest.mark.parametrize(("threshold", "edge", "outward"), EDGES)
def test_every_edge_belongs_to_its_range_and_the_next_number_does_not(threshold, edge, outward):
    beyond = math.nextafter(edge, outward)
    within = decide(exact(edge), threshold)
    if edge in threshold.passes:
        assert within is Verdict.PASS
        kept = threshold.warns[0] <= beyond <= threshold.warns[1]
        assert decide(exact(beyond), threshold) is (Verdict.WARN if kept else Verdict.FAIL)
    else:
        assert within is Verdict.WARN
        assert decide(exact(beyond), threshold) is Verdict.FAIL


@pytest.mark.parametrize("threshold", TABLE, ids=lambda t: f"{t.gate}-{t.quantity}")
def test_a_threshold_is_well_formed(threshold):
    assert threshold.passes[0] <= threshold.passes[1]
    assert threshold.warns[0] <= threshold.passes[0]
    assert threshold.passes[1] <= threshold.warns[1]
    assert threshold.reason
    assert THRESHOLDS[threshold.gate, threshold.quantity] is threshold, "two rows of one quantity"


@pytest.mark.parametrize(
    ("gate", "quantity", "passes", "warns", "fails"),
    [
        ("G0", "fp32 error", [1e-3], [], [1.1e-3]),
        ("G0", "bf16 error", [2e-2], [], [2.1e-2]),
        ("G2", "init entropy / ln V", [0.9, 1.0], [0.899, 0.75], [0.749]),
        ("G2", "init loss - ln V", [-0.1, 0.1], [0.11, -0.5], [0.51, -0.51]),
        ("G3", "loss drop", [0.1], [0.09], [0.04]),
        ("G3.5", "cosine at lag 64", [0.99, -1], [], [0.991]),
        ("G3.5", "cosine at lag 1", [0.2], [0.19, -1], []),
        ("G3.5", "effective rank", [0.05, 0.95], [0.049, 0.96, 0.02], [0.019]),
        ("G3.5", "outlier share", [0.01], [0.011], [0.021]),
        ("G4", "gradient R/M", [0.3, 3], [0.29, 0.1, 3.1, 10], [0.09, 10.1]),
        ("independence", "branch cosine", [0.3, -0.3], [0.31, -0.31], [0.91, -0.91]),
    ],
)
def test_the_defined_numbers_stay(gate, quantity, passes, warns, fails):
    verdicts = {v: decide(exact(v), THRESHOLDS[gate, quantity]) for v in (*passes, *warns, *fails)}
    assert all(verdicts[v] is Verdict.PASS for v in passes)
    assert all(verdicts[v] is Verdict.WARN for v in warns)
    assert all(verdicts[v] is Verdict.FAIL for v in fails)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.2, 1.8, Verdict.PASS),
        (2.5, 3.5, Verdict.WARN),
        (0.1, 0.9, Verdict.WARN),
        (4.5, 5.0, Verdict.FAIL),
        (-2.0, -1.0, Verdict.FAIL),
        (1.5, 2.5, Verdict.INCONCLUSIVE),
        (3.5, 4.5, Verdict.INCONCLUSIVE),
        (0.5, 3.0, Verdict.INCONCLUSIVE),
        (-1.0, 9.0, Verdict.INCONCLUSIVE),
        (-math.inf, math.inf, Verdict.INCONCLUSIVE),
        (math.nan, math.nan, Verdict.FAIL),
    ],
)
def test_an_interval_decides(low, high, verdict):
    assert decide(Interval((low + high) / 2, low, high, 10), RULE) is verdict


def test_it_says_how_many_samples_would_settle_it():
    open_case = Interval(1.8, 1.4, 2.2, 100)
    needed = samples_needed(open_case, RULE)
    assert needed == pytest.approx(400 * (2.8016 / 1.96) ** 2, abs=1)
    half = 0.4 * math.sqrt(100 / needed)
    assert decide(Interval(1.8, 1.8 - half, 1.8 + half, needed), RULE) is Verdict.PASS
    assert samples_needed(Interval(2.0, 1.9, 2.1, 10), RULE) is None
    assert samples_needed(unknown(1.5, 1), RULE) is None


def test_the_promised_samples_settle_it_four_times_in_five():
    rng = np.random.default_rng(0)
    pilot = Interval(1.8, 1.8 - 1.96 * 0.2, 1.8 + 1.96 * 0.2, 25)  # one sample has a spread of 1
    needed = samples_needed(pilot, RULE)
    means = 1.8 + rng.normal(size=4000) / math.sqrt(needed)
    half = 1.96 / math.sqrt(needed)
    settled = sum(
        decide(Interval(m, m - half, m + half, needed), RULE) is Verdict.PASS for m in means
    )
    assert settled / len(means) == pytest.approx(0.8, abs=0.02)


def test_equivalence_is_claimed_in_error_once_in_forty():
    """The truth lies on the margin, where a claim of equivalence is just wrong."""
    rule = Threshold("X", "x", "", (-1.0, 1.0), (-1.0, 1.0), "an example")
    rng = np.random.default_rng(0)
    claims = sum(
        decide(t_mean(1.0 + rng.normal(size=20)), rule) is Verdict.PASS for _ in range(300)
    )
    assert claims / 300 == pytest.approx(0.025, abs=0.02)


def test_a_finding_is_a_record_line():
    finding = judge("G4", "gradient R/M", Interval(2.5, 2.0, 3.2, 20), "IQR 2.1..2.9", "blocks.0")
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.name == "gradient R/M, blocks.0"
    assert finding.note == "needs about 61 more samples; IQR 2.1..2.9"
    assert finding.threshold == "0.3..3 (warn 0.1..10)"
    record = json.loads(json.dumps(finding.record()))
    assert record["verdict"] == "INCONCLUSIVE"
    assert record["id"] == "G4"


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(2.5, 2.0, 3.2, 20), "needs about 61 more samples"),
        (Interval(2.9, 2.5, 3.3, 1000), "needs about 32,000 more samples"),
        (Interval(2.99, 2.0, 4.0, 20), "too near an edge for any number of samples to settle"),
        (Interval(3.0, 2.0, 4.0, 20), "too near an edge for any number of samples to settle"),
        (unknown(2.0, 1), "1 samples give no interval"),
    ],
)
def test_a_number_of_samples_is_promised_only_where_it_could_be_had(interval, said):
    assert judge("G4", "gradient R/M", interval).note == said


def test_a_skipped_test_never_passes():
    finding = skipped("G4", "component balance", "no Mamba-2 branch")
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.note == "skipped: no Mamba-2 branch"


@pytest.mark.parametrize(
    ("passes", "warns", "text"),
    [
        ((0, 0), (0, 0), "0"),
        ((-math.inf, 0), (-math.inf, math.inf), "<= 0 (warn any)"),
        ((0.9, math.inf), (0.5, math.inf), ">= 0.9 (warn >= 0.5)"),
    ],
)
def test_thresholds_read_as_words(passes, warns, text):
    assert Threshold("X", "x", "", passes, warns, "an example").text == text
