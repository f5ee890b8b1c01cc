"""The MLP in one pass: kernels against fp64, and the block that uses them."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
from kernel_laws import HALF, normal

from groundthink.errors import UserError
from groundthink.ops.mlp import add_mlp


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(tokens, size, hidden):
    up = normal(hidden, size, scale=size**-0.5, dtype=HALF)
    down = normal(size, hidden, scale=hidden**-0.5, dtype=HALF)
    return normal(2, tokens, size), 1 + normal(size, scale=0.1), up, down


def halved(x, norm, up, down, *, backend):
    """The products in half precision, unless in fp64."""
    return add_mlp(x, norm, up, down, 1e-6, dtype=up.dtype, backend=backend)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("shape", [(35, 48, 160), (1, 128, 64), (70, 16, 24)])
def test_kernels_equal_the_fp64_reference(shape):
    kernel_laws.equals_the_reference(halved, make(*shape), HALF)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_kernels_repeat_bitwise_and_take_an_empty_batch():
    kernel_laws.repeats_bitwise(halved, make(35, 16, 32))
    kernel_laws.takes_an_empty_batch(halved, make(0, 16, 32))


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_far_units_keep_their_gradient():
    """GELU is 0 far below and the identity far above zero, and so is its slope."""
    x, norm, up, down = make(3, 16, 32)
    kernel_laws.equals_the_reference(halved, (x, norm, 40 * up, down), HALF)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_misfits_are_named():
    x, norm, up, down = make(2, 16, 32)
    with pytest.raises(UserError, match="add_mlp: down has shape"):
        add_mlp(x, norm, up, down.t(), 1e-6)
    with pytest.raises(UserError, match="half precision alone"):
        add_mlp(x, norm, up, down, 1e-6, backend="triton")
    with pytest.raises(UserError, match="up to 128 channels, not 144"):
        halved(*make(2, 144, 32), backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 128, 512), (8192, 128, 512), (1001, 96, 384)])
def test_bf16_on_the_gpu(shape):
    kernel_laws.equals_the_reference(halved, make(*shape), HALF)
    kernel_laws.repeats_bitwise(halved, make(*shape))
    kernel_laws.captures(halved, make(*shape))
