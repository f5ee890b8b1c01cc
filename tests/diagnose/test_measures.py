"""Known answers of the measures of a state."""

from __future__ import annotations

import math

import pytest
import torch

from groundthink.diagnose import measures
from groundthink.diagnose.measures import effective_rank, singular, spectral_entropy

pytestmark = pytest.mark.tiny


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_rank_and_entropy_of_known_matrices():
    assert effective_rank(singular(torch.eye(8)[None, None])).item() == pytest.approx(1)
    assert effective_rank(singular(torch.ones(1, 1, 8, 8))).item() == pytest.approx(1 / 8, rel=1e-4)
    half = singular(torch.diag(torch.tensor([2.0, 2, 2, 2, 0, 0, 0, 0]))[None, None])
    assert effective_rank(half).item() == pytest.approx(1 / 2)
    assert effective_rank(half, 4).item() == pytest.approx(1), "four tokens write rank four at most"
    assert spectral_entropy(half).item() == pytest.approx(math.log(4) / math.log(8))


def test_cosine_is_by_head_and_of_a_zero_state_nan():
    a = noise(3, 2, 4, 4)
    assert measures.cosine(a, 5 * a).tolist() == pytest.approx([1, 1, 1])
    flipped = a * torch.tensor([1.0, -1.0])[:, None, None]
    assert measures.cosine(a, flipped).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert measures.cosine(a, 0 * a).isnan().all()


def test_distances_do_not_depend_on_scale():
    a, b = noise(2, 1, 4, 4), noise(3, 1, 4, 4)[1:]
    for measure in (measures.distance, measures.apart, measures.relative):
        assert measure(7 * a, 7 * b).tolist() == pytest.approx(measure(a, b).tolist(), rel=1e-5)
    assert measures.apart(a, -a).tolist() == pytest.approx([2, 2])
    assert measures.apart(a, a).tolist() == measures.distance(0 * a, 0 * a).tolist() == [0, 0]


def test_a_sketch_keeps_inner_products():
    a, b = noise(8, 2, 32, 32), noise(9, 2, 32, 32)[1:]
    both = torch.cat((a, b + a))
    exact, short = both.flatten(1), measures.sketch(both)
    scale = exact.norm(dim=1)[:, None] * exact.norm(dim=1)
    error = (short @ short.T - exact @ exact.T) / scale
    assert error.square().mean().sqrt() < 1.5 / math.sqrt(measures.BUCKETS)
    assert torch.equal(measures.sketch(a), measures.sketch(a))
