"""The sums over tokens of outer products that are the gradients of weights."""

from __future__ import annotations

import pytest
import torch
from kernel_laws import DEVICE, HALF, normal

from groundthink.ops.testing import poisoned_memory, relative_rms


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    "shapes",
    [
        [(24, 40)],
        [(136, 8), (8, 136), (128, 128)],
        [(16, 16)] * 4,
        [(9, 16), (16, 16)],
        [(1024, 1024)],
    ],
)
def test_sums_of_several_pairs(shapes):
    """Also of parts of wider rows, and of shapes that are left to the library."""
    pytest.importorskip("triton")
    from groundthink.ops.outer.launch import outer

    tokens = 300 if DEVICE.type == "cuda" else 70
    pairs = [
        (normal(tokens, m + 8, dtype=HALF)[:, :m], normal(tokens, n, dtype=HALF)) for m, n in shapes
    ]
    for result, (a, b) in zip(outer(pairs, torch.float32), pairs, strict=True):
        assert relative_rms(result, a.double().t() @ b.double()) <= 4e-3
    if sum(m * n for m, n in shapes) < 1 << 18:
        rounded = outer(pairs, HALF)
        assert all(r.dtype == HALF for r in rounded)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_it_repeats_bitwise():
    pytest.importorskip("triton")
    from groundthink.ops.outer.launch import outer

    pairs = [(normal(200, m, dtype=HALF), normal(200, 16, dtype=HALF)) for m in (8, 24)]
    first = outer(pairs, torch.float32)
    with poisoned_memory():
        again = outer(pairs, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("shapes", [[(128, 128)] * 4, [(256, 128), (392, 128)], [(512, 128)] * 2])
def test_bf16_on_the_gpu(shapes):
    from groundthink.ops.outer.launch import outer

    pairs = [(normal(16384, m, dtype=HALF), normal(16384, n, dtype=HALF)) for m, n in shapes]
    for result, (a, b) in zip(outer(pairs, torch.float32), pairs, strict=True):
        assert relative_rms(result, a.double().t() @ b.double()) <= 1e-5
