"""Known answers of the statistics, and coverage of their intervals by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from groundthink.verdicts import statistics as st

pytestmark = pytest.mark.tiny


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(10, 10, 0.7225, 1.0), (20, 20, 0.8389, 1.0), (95, 100, 0.8882, 0.9785), (0, 10, 0.0, 0.2775)],
)
def test_wilson_known_values(successes, n, low, high):
    interval = st.wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)
    assert interval.low <= interval.value <= interval.high


def test_wilson_of_nothing_is_everything():
    assert (st.wilson(0, 0).low, st.wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("p", "df", "t"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 3, 3.1824),
        (0.975, 10, 2.2281),
        (0.995, 30, 2.7500),
        (0.99, 7, 2.9980),
        (0.975, 120, 1.9799),
        (0.975, 5001, 1.9604),
    ],
)
def test_student_t_matches_the_printed_tables(p, df, t):
    assert st.t_quantile(p, df) == pytest.approx(t, abs=1e-4)
    assert st.t_inside(t, df) == pytest.approx(2 * p - 1, abs=1e-5)


def test_t_mean_of_a_worked_example():
    interval = st.t_mean([1, 2, 3, 4, 5])
    assert interval.value == 3
    assert interval.high - interval.value == pytest.approx(2.7764 * math.sqrt(2.5 / 5), abs=1e-4)


def test_slope_of_a_worked_example():
    interval, p = st.slope([1, 2, 3, 4, 5], [2, 4, 5, 4, 5])
    assert interval.value == pytest.approx(0.6)
    assert p == pytest.approx(0.1240, abs=1e-4)
    assert interval.low < 0 < interval.high


def test_slope_of_an_exact_line_has_no_doubt():
    interval, p = st.slope(range(10), [2.0 * i for i in range(10)])
    assert (interval.low, interval.high, p) == (2.0, 2.0, 0.0)
    assert st.slope(range(10), [1.0] * 10)[1] == 1.0


def test_median_uses_the_order_statistics_of_the_tables():
    values = list(range(1, 21))
    interval = st.median(values)
    assert (interval.value, interval.low, interval.high) == (10.5, 6, 15)
    assert st.median(range(1, 7)).low == 1
    assert st.median(range(5)).high == math.inf


@pytest.mark.parametrize("estimate", [st.t_mean, st.bootstrap_mean], ids=["t", "bootstrap"])
def test_one_sample_leaves_the_mean_open(estimate):
    interval = estimate([3.0])
    assert (interval.value, interval.low, interval.high) == (3.0, -math.inf, math.inf)


def test_intervals_of_the_mean_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(400, 40))
    for estimate in (st.t_mean, lambda x: st.bootstrap_mean(x, resamples=400)):
        covered = sum(i.low <= 0 <= i.high for i in map(estimate, samples))
        assert 0.90 <= covered / len(samples) <= 0.99


def test_clustering_widens_the_interval_of_dependent_samples():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 50)
    values = rng.normal(size=30)[labels] + 0.1 * rng.normal(size=1500)
    plain, clustered = st.bootstrap_mean(values), st.bootstrap_mean(values, labels)
    assert clustered.value == plain.value
    assert clustered.n == 30
    assert clustered.high - clustered.low > 5 * (plain.high - plain.low)


def test_the_bootstrap_repeats_with_its_seed():
    values = np.random.default_rng(1).normal(size=50)
    assert st.bootstrap_mean(values) == st.bootstrap_mean(values)
    assert st.bootstrap_mean(values) != st.bootstrap_mean(values, seed=1)


def test_normal_interval_is_196_standard_errors():
    assert st.normal(1.0, 0.1, 100).high == pytest.approx(1.19600, abs=1e-5)


def test_pairing_finds_what_the_spread_between_texts_hides():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 4)
    whole = 3 * rng.normal(size=40)[documents] + rng.normal(size=160)
    cut = whole + 0.2 + 0.1 * rng.normal(size=160)
    paired = st.Paired({"whole": whole, "cut": cut}, documents)
    effect = paired.interval(lambda m: m["cut"] - m["whole"])
    assert effect.value == pytest.approx(cut.mean() - whole.mean())
    assert 0.15 < effect.low < 0.2 < effect.high < 0.25
    assert effect.n == paired.n == 40
    ratio = paired.interval(lambda m: (m["cut"] - m["whole"]) / m["cut"])
    assert ratio.value == pytest.approx(1 - whole.mean() / cut.mean())
    alone = st.bootstrap_mean(cut, documents)
    assert effect.high - effect.low < (alone.high - alone.low) / 20
    assert paired.p_value(lambda m: m["cut"] - m["whole"]) < 0.002


def test_equal_quantities_differ_by_exactly_nothing():
    x = np.random.default_rng(0).normal(size=61)
    paired = st.Paired({str(i): x for i in range(30)}, np.arange(61) // 2)
    for i in range(1, 30):
        assert paired.interval(lambda m, i=i: m["0"] - m[str(i)]) == st.exact(0.0, 31)
        assert paired.p_value(lambda m, i=i: m["0"] - m[str(i)]) == 1.0


def test_paired_intervals_and_p_values_hold_what_they_promise():
    """400 effects of zero in one set of resamples: 5 % may be called real, and 5 % missed."""
    rng = np.random.default_rng(1)
    null = st.Paired({str(i): rng.normal(size=60) for i in range(400)}, resamples=1000)
    p = [null.p_value(lambda m, i=i: m[str(i)]) for i in range(400)]
    assert np.mean(np.less(p, 0.05)) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.less(p, 0.5)) == pytest.approx(0.5, abs=0.08)
    intervals = [null.interval(lambda m, i=i: m[str(i)]) for i in range(400)]
    assert np.mean([i.low <= 0 <= i.high for i in intervals]) == pytest.approx(0.95, abs=0.03)


def test_holm_matches_a_worked_example():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.9, 0.8]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_holm_errs_anywhere_no_more_often_than_once():
    """Eight true nulls beside two real effects: one false claim among them in 5 % of families."""
    rng = np.random.default_rng(0)
    families = np.concatenate((rng.uniform(size=(2000, 8)), np.full((2000, 2), 1e-6)), axis=1)
    wrong = [min(st.holm(list(family))[:8]) < 0.05 for family in families]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("value", "edge", "needed"),
    [(0.5, 0.0, 32), (0.2, 0.0, 197), (0.3, 0.5, 197), (0.02, 0.0, 19623)],
)
def test_samples_to_clear_match_the_normal_table(value, edge, needed):
    """n = (1.96 + 0.84)^2 sd^2 / distance^2 at a spread of one."""
    half = 1.959964 / math.sqrt(100)
    assert st.samples_to_clear(st.Interval(value, value - half, value + half, 100), edge) == needed
