from __future__ import annotations

import random

import pytest

from groundthink.report.series import column, every, running_mean, thin

pytestmark = pytest.mark.tiny


def test_column_takes_nested_fields_as_they_are() -> None:
    rows = [{"step": 1, "rms": {"r": 0.1 + 0.2}}, {"step": 2}, {"step": 3, "rms": {"r": None}}]
    assert column(rows, "rms", "r") == ([1, 3], [0.1 + 0.2, None])
    assert column(rows, "rms", "m") == ([], [])


@pytest.mark.parametrize("n", [1, 1999, 2000, 2001, 2003, 50_000])
def test_thinning_keeps_ends_and_extremes(n: int) -> None:
    rng = random.Random(n)
    y = [rng.gauss(0, 1) for _ in range(n)]
    y[n // 3], y[n // 2] = 40.0, -40.0
    x, thinned = thin(range(n), y)
    assert len(x) <= 2000
    assert x == sorted(set(x)) and x[0] == 0 and x[-1] == n - 1
    assert thinned == [y[i] for i in x]
    assert {max(y), min(y)} <= set(thinned)


def test_thinning_keeps_the_envelope_of_every_run() -> None:
    y = [float((i * 7919) % 1000) for i in range(10_000)]
    x, thinned = thin(range(10_000), y, most=22)
    for run in range(10):
        inside = [value for i, value in zip(x, thinned, strict=True) if i // 1000 == run]
        assert {max(inside), min(inside)} == {max(y[:1000]), min(y[:1000])}


def test_thinning_keeps_gaps() -> None:
    y = [None if 400 <= i < 600 else 1.0 for i in range(1000)]
    _, thinned = thin(range(1000), y, most=52)
    assert None in thinned


def test_running_mean_is_centred_and_skips_gaps() -> None:
    assert running_mean([1, 2, 3, 4], [1, 2, None, 6], 3) == ([1, 2, 3, 4], [1.5, 1.5, 4, 6])
    assert running_mean([1, 2], [None, None], 3)[1] == [None, None]
    assert running_mean([1, 2, 3], [5, 7, 9], 1)[1] == [5, 7, 9]


def test_running_mean_of_a_line_is_the_line_inside() -> None:
    x, means = running_mean(range(100), range(100), 11)
    assert means[5:95] == x[5:95]


def test_every_keeps_first_and_last() -> None:
    assert every(range(10), 4) == [0, 3, 6, 9]
    assert every([1, 2], 4) == [1, 2]
