"""Held-out documents: near the fractions, by content alone, named splits honoured."""

from __future__ import annotations

import random

import pytest

from groundthink.data.split import content_hash, plan

pytestmark = pytest.mark.tiny


def planned(texts, val=0.1, test=0.0, named=None):
    sizes = [len(text) for text in texts]
    return plan(named or [""] * len(texts), [content_hash(t) for t in texts], sizes, val, test)


def corpus(n, seed=0):
    rng = random.Random(seed)
    return [f"{i} " * rng.randint(1, 400) for i in range(n)]


@pytest.mark.parametrize("seed", range(5))
def test_sizes_come_within_half_a_document_of_the_fractions(seed):
    texts = corpus(300, seed)
    splits = planned(texts, val=0.1, test=0.05).splits
    total, half = sum(map(len, texts)), max(map(len, texts)) / 2
    for split, fraction in (("val", 0.1), ("test", 0.05)):
        size = sum(len(t) for t, s in zip(texts, splits, strict=True) if s == split)
        assert abs(size - total * fraction) <= half


def test_the_choice_depends_on_the_documents_alone():
    texts = corpus(50)
    chosen = dict(zip(texts, planned(texts).splits, strict=True))
    random.Random(1).shuffle(texts)
    assert dict(zip(texts, planned(texts).splits, strict=True)) == chosen


def test_identical_documents_share_a_split():
    for seed in range(20):
        texts = corpus(12, seed)
        splits = planned(texts + texts, val=0.3).splits
        assert splits[:12] == splits[12:]


def test_named_splits_are_honoured_when_there_is_a_train():
    texts = [*corpus(30), "held out"]
    named = ["train"] * 29 + ["", "val"]
    assert planned(texts, named=named).splits == ["train"] * 30 + ["val"]
    with_test = planned(texts, test=0.2, named=named).splits
    assert with_test[-1] == "val" and with_test.count("val") == 1 and "test" in with_test
    without_train = planned(texts, named=["test"] * 31)
    assert {*without_train.splits} == {"train", "val"}


def test_one_document_is_cut_at_a_paragraph():
    text = "\n\n".join(f"Paragraph {i} of the only document there is." for i in range(500))
    chosen = planned([text], val=0.1, test=0.2)
    parts = dict(chosen.parts(0, text))
    assert "".join(parts.values()) == text
    assert abs(len(parts["val"]) / len(text) - 0.1) < 0.01
    assert abs(len(parts["test"]) / len(text) - 0.2) < 0.01
    assert all(part.startswith("Paragraph") for part in parts.values())
    assert "largest document" in chosen.how


def test_a_few_large_documents_cut_the_largest():
    texts = ["a\n" * 1000, "b\n" * 3000, "c\n" * 1000]
    chosen = planned(texts)
    assert chosen.cut == 1 and chosen.splits == ["train"] * 3
    assert abs(len(dict(chosen.parts(1, texts[1]))["val"]) - 1000) <= 2
