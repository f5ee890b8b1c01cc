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
