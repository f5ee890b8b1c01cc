"""The norms and what surrounds them: the kernels against fp64, the reference against torch."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
import torch.nn.functional as F
from kernel_laws import HALF, normal

from groundthink.errors import UserError
from groundthink.ops.norm import gated_rms_norm, head_norm_gate, residual_norm, rms_norm

OPS = (rms_norm, residual_norm, gated_rms_norm, head_norm_gate)
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(op, batch, steps, size, dtype=torch.float32):
    """Arguments of op, `size` channels in heads or groups of a third where it divides."""
    x, y = normal(batch, steps, size, dtype=dtype), normal(batch, steps, size, dtype=dtype)
    parts = 3 if size % 3 == 0 else 1
    weight = normal(size)
    if op is rms_norm:
        return x, weight, 1e-6
    if op is residual_norm:  # the stream is in fp32 whatever reads it
        return x.float(), weight, 1e-6
    if op is gated_rms_norm:
        z = normal(batch, steps, size + 24, dtype=dtype)[..., 8 : 8 + size]
        return x, z, weight, parts, 1e-5
    return x.unflatten(-1, (parts, -1)), y, weight, normal(size), 64e-5


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("shape", [(2, 15, 48), (3, 1, 33), (1, 65, 130), (2, 3, 5)])
@every_op
def test_kernels_equal_the_fp64_reference(op, shape):
    kernel_laws.equals_the_reference(op, make(op, *shape))


@pytest.mark.usefixtures("interpreter")
@every_op
def test_kernels_in_half_precision(op):
    kernel_laws.equals_the_reference(op, make(op, 2, 9, 48, HALF), HALF)


@pytest.mark.usefixtures("interpreter")
def test_a_wide_stream_gives_a_narrow_norm():
    """The residual stream stays in fp32; the norm comes out as the next layer wants it."""
    x, weight = normal(2, 9, 48), normal(48)

    def op(*args, backend):
        return residual_norm(*args, dtype=HALF if backend == "triton" else None, backend=backend)

    through, normed, _ = op(x, weight, 1e-6, backend="triton")
    assert through.data_ptr() == x.data_ptr() and normed.dtype == HALF
    kernel_laws.equals_the_reference(op, (x, weight, 1e-6), HALF)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
@every_op
def test_kernels_repeat_bitwise_and_read_no_uninitialised_memory(op):
    kernel_laws.repeats_bitwise(op, make(op, 2, 33, 48))


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
@every_op
def test_an_empty_batch(op):
    kernel_laws.takes_an_empty_batch(op, make(op, 0, 4, 48))


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@every_op
def test_kernels_compile_without_a_graph_break(op):
    kernel_laws.compiles(op, make(op, 2, 9, 48))


@pytest.mark.tiny
def test_the_reference_is_what_torch_computes():
    y, z, weight, bias = normal(2, 5, 3, 8), normal(2, 5, 24), normal(24), normal(24)
    flat, eps = y.flatten(-2), 1e-3
    grouped = F.group_norm(flat.flatten(0, 1), 3, weight, bias, eps).view_as(flat)
    gated = F.rms_norm((flat * F.silu(z)).unflatten(-1, (3, 8)), (8,), eps=eps).flatten(-2)
    for result, expected in (
        (head_norm_gate(y, z, weight, bias, eps, backend="reference"), grouped * F.silu(z)),
        (gated_rms_norm(flat, z, weight, 3, eps, backend="reference"), gated * weight),
        (rms_norm(z, weight, eps, backend="reference"), F.rms_norm(z, (24,), weight, eps)),
    ):
        torch.testing.assert_close(result, expected)


@pytest.mark.tiny
def test_misfits_are_named():
    x, weight = normal(2, 4, 24), normal(24)
    for call, name in (
        (lambda: rms_norm(x, weight[1:], 1e-6), "rms_norm: weight"),
        (lambda: residual_norm(x, weight[1:], 1e-6), "residual_norm: weight"),
        (lambda: gated_rms_norm(x, x[..., 1:], weight, 1, 1e-6), "gated_rms_norm: z"),
        (lambda: head_norm_gate(x.unflatten(-1, (3, 8)), x, weight, weight[1:], 1e-6), "bias"),
    ):
        with pytest.raises(UserError, match=f"{name} has shape"):
            call()
    with pytest.raises(UserError, match="5 groups do not divide the 24 channels"):
        gated_rms_norm(x, x, weight, 5, 1e-6)
    with pytest.raises(UserError, match="unknown rms_norm backend 'tritn'; did you mean triton"):
        rms_norm(x, weight, 1e-6, backend="tritn")
    with pytest.raises(UserError, match="takes no fp64"):
        rms_norm(x.double(), weight, 1e-6, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 1, 128), (3, 1000, 192), (16, 1024, 768), (1, 65536, 128)])
@every_op
def test_bf16_on_the_gpu(op, shape):
    args = make(op, *shape, torch.bfloat16)
    kernel_laws.equals_the_reference(op, args, torch.bfloat16)
    kernel_laws.repeats_bitwise(op, args)


@pytest.mark.gpu
@every_op
def test_graph_capture_and_compilation_on_the_gpu(op):
    args = make(op, 4, 64, 192, torch.bfloat16)
    kernel_laws.captures(op, args)
    kernel_laws.compiles(op, args)
