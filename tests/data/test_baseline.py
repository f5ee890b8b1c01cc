"""Unigram and bigram baselines against the definitions written out with dictionaries."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest

from groundthink.data import baseline
from groundthink.data.baseline import ngram_baselines
from groundthink.data.packed import Packed


def split(tokens) -> Packed:
    return Packed(np.asarray(tokens, dtype=np.uint16), np.array([len(tokens)]))


def by_hand(train, val, size):
    ones, pairs = Counter(train), Counter(zip(train, train[1:], strict=False))
    after = Counter(first for first, _ in pairs.elements())
    kinds = Counter(first for first, _ in pairs)

    def unigram(t):
        return (ones[t] + 1) / (len(train) + size)

    def bigram(s, t):
        if not after[s]:
            return unigram(t)
        return (pairs[s, t] + kinds[s] * unigram(t)) / (after[s] + kinds[s])

    for s in range(size):  # both are distributions
        assert math.isclose(sum(bigram(s, t) for t in range(size)), 1)
    n = len(val) - 1
    return {
        "uniform": math.log(size),
        "unigram": -sum(math.log(unigram(t)) for t in val[1:]) / n,
        "bigram": -sum(math.log(bigram(s, t)) for s, t in zip(val, val[1:], strict=False)) / n,
    }


@pytest.mark.tiny
@pytest.mark.parametrize("table", ["dense", "sparse"])
def test_the_definition(table, monkeypatch):
    monkeypatch.setattr(baseline, "CHUNK", 7)
    monkeypatch.setattr(baseline, "DENSE", 10**6 if table == "dense" else 0)
    rng = np.random.default_rng(0)
    train = np.minimum(rng.geometric(0.3, 500), 12).tolist()
    val = [*np.minimum(rng.geometric(0.2, 60), 14).tolist(), 15, 15]  # pairs and tokens unseen
    found = ngram_baselines(split(train), split(val), 16)
    assert found == pytest.approx(by_hand(train, val, 16), rel=1e-12)


@pytest.mark.tiny
def test_a_cycle_is_known_to_bigrams_alone():
    cycle = [1, 2, 3, 4] * 5000
    found = ngram_baselines(split(cycle), split(cycle[:101]), 5)
    assert found["unigram"] == pytest.approx(math.log(4), abs=1e-3)
    assert 0 < found["bigram"] < 1e-3


def test_speed_and_memory_at_a_large_vocabulary():
    """Twenty million characters, and a vocabulary whose table of pairs would take 32 GB."""
    rng = np.random.default_rng(0)
    for size, n in ((128, 20_000_000), (64_000, 2_000_000)):
        tokens = rng.integers(size, size=n, dtype=np.uint16)
        start = time.process_time()
        found = ngram_baselines(split(tokens), split(tokens[: n // 20]), size)
        assert time.process_time() - start < 3
        assert found["unigram"] == pytest.approx(found["uniform"], abs=0.02)
