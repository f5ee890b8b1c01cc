"""Validation loss and its standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from groundthink.data.stream import Batch
from groundthink.models.build import build
from groundthink.models.config import ModelConfig
from groundthink.train.evaluate import bits_per_byte, evaluate, perplexity, standard_error

pytestmark = pytest.mark.tiny
BYTES = torch.tensor([0] * 10 + [1] * 30 + [2] * 10)


@pytest.fixture
def text():
    tokens = torch.randint(50, (3, 41), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[0, :7] = -100
    return Batch(tokens[:, :-1], targets, torch.zeros(3, 40, dtype=torch.bool))


@pytest.fixture
def model():
    return build(ModelConfig(d_model=32, n_layers=2, vocab_size=50), seed=3)


def pieces(batch: Batch, length: int):
    for i in range(0, batch.tokens.shape[1], length):
        part = slice(i, i + length)
        yield Batch(batch.tokens[:, part], batch.targets[:, part], batch.reset[:, part])


def test_loss_is_the_mean_over_scored_tokens(model, text):
    found = evaluate(model, [text], BYTES, carry=False)
    with torch.no_grad():
        loss = F.cross_entropy(model(text.tokens)[0].flatten(0, 1), text.targets.flatten())
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert found["tokens"] == 3 * 40 - 7
    n_bytes = BYTES[text.targets[text.targets >= 0]].sum().item()
    assert found["bpb"] == pytest.approx(found["loss"] * found["tokens"] / math.log(2) / n_bytes)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert model.training


def test_carried_state_makes_pieces_the_whole(model, text):
    whole = evaluate(model, [text], BYTES, carry=True)
    for length in (1, 7, 40):
        found = evaluate(model, pieces(text, length), BYTES, carry=True)
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert found["se"] == pytest.approx(whole["se"], rel=1e-3)
    apart = evaluate(model, pieces(text, 7), BYTES, carry=False)
    assert apart["loss"] != pytest.approx(whole["loss"], rel=1e-5)


def test_standard_error_of_equal_clusters_is_the_classical_one():
    sums = np.array([3.0, 5.0, 4.0, 8.0])
    expected = sums.std(ddof=1) / 10 / math.sqrt(4)
    assert standard_error(sums, np.full(4, 10)) == pytest.approx(expected)


def test_standard_error_covers_the_truth():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        counts = rng.integers(5, 50, size=60)
        sums = counts * (2 + rng.normal(0, 0.3, size=60)) + rng.normal(0, np.sqrt(counts))
        loss, se = sums.sum() / counts.sum(), standard_error(sums, counts)
        inside += abs(loss - 2) < 1.96 * se
    assert 0.91 < inside / 400 < 0.98


def test_standard_error_needs_two_clusters():
    assert math.isnan(standard_error(np.array([3.0, 0.0]), np.array([7, 0])))


def test_bits_per_byte_and_perplexity():
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)
    assert math.isnan(bits_per_byte(1.0, 0))
    assert perplexity(0.0) == 1 and perplexity(1e4) == math.inf
