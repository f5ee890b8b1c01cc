"""Linear maps: the sums over tokens that are the gradients of their weights."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
from kernel_laws import DEVICE, HALF, normal

from groundthink.errors import UserError
from groundthink.ops.linear import linear
from groundthink.ops.testing import relative_rms


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
    from groundthink.ops.linear.launch import outer

    tokens = 300 if DEVICE.type == "cuda" else 70
    pairs = [
        (normal(tokens, m + 8, dtype=HALF)[:, :m], normal(tokens, n, dtype=HALF)) for m, n in shapes
    ]
    for result, (a, b) in zip(outer(pairs, torch.float32), pairs, strict=True):
        assert relative_rms(result, a.double().t() @ b.double()) <= 1e-3
    if sum(m * n for m, n in shapes) < 1 << 18:
        rounded = outer(pairs, HALF)
        assert all(r.dtype == HALF for r in rounded)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_it_equals_the_fp64_reference(dtype):
    args = normal(2, 35, 16, dtype=dtype), normal(24, 16, scale=0.25, dtype=dtype)
    kernel_laws.equals_the_reference(linear, args, dtype)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_it_repeats_bitwise_and_takes_an_empty_batch():
    kernel_laws.repeats_bitwise(linear, (normal(70, 16, dtype=HALF), normal(8, 16, dtype=HALF)))
    empty = normal(0, 3, 16, dtype=HALF), normal(8, 16, dtype=HALF)
    kernel_laws.takes_an_empty_batch(linear, empty)


@pytest.mark.tiny
def test_misfits_are_named():
    with pytest.raises(UserError, match="linear: weight has shape"):
        linear(normal(2, 8), normal(3, 9))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(16384, 128, 128), (16384, 648, 128), (1000, 192, 768)])
def test_bf16_on_the_gpu(shape):
    tokens, outputs, inputs = shape
    args = normal(tokens, inputs, dtype=HALF), normal(outputs, inputs, dtype=HALF, scale=0.1)
    kernel_laws.equals_the_reference(linear, args, HALF)
    kernel_laws.repeats_bitwise(linear, args)
    kernel_laws.captures(linear, args)
    kernel_laws.compiles(linear, args)
