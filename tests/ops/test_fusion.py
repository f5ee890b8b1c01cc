"""The fusion kernels against fp64, and their reference against torch."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
import torch.nn.functional as F
from kernel_laws import HALF, normal

from groundthink.errors import UserError
from groundthink.ops.fusion import branch_gains, channel_gate, token_gate

OPS = (token_gate, channel_gate, branch_gains)
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(op, batch, steps, size, dtype=torch.float32, norms=True):
    """Arguments of op; the residual stream in fp32, the branches as views of wider tensors."""
    x = normal(batch, steps, size)
    r, m = (normal(batch, steps, size + 8, dtype=dtype)[..., 8:] for _ in range(2))
    if op is channel_gate:
        return x, r, m, normal(batch, steps, size, dtype=dtype)
    weights = (normal(size), normal(size)) if norms else (None, None)
    if op is branch_gains:
        return x, r, m, *weights, normal(size), normal(size), 1e-6
    return x, r, m, *weights, normal(1, 2 * size, scale=size**-0.5), normal(1), 1e-6


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("shape", [(2, 15, 48), (3, 1, 33), (1, 65, 130), (2, 3, 5)])
@every_op
def test_kernels_equal_the_fp64_reference(op, shape, norms):
    kernel_laws.equals_the_reference(op, make(op, *shape, norms=norms))


@pytest.mark.usefixtures("interpreter")
@every_op
def test_kernels_in_half_precision(op):
    kernel_laws.equals_the_reference(op, make(op, 2, 9, 48, HALF), HALF)


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
@pytest.mark.usefixtures("interpreter")
def test_the_gate_may_be_left_unused():
    """A loss on the sum alone, as in training, and one on the gate alone, as in a probe."""
    leaves = kernel_laws.differentiable(make(token_gate, 2, 9, 48))
    for output in (0, 1):
        grads = []
        for backend in ("triton", "reference"):
            loss = token_gate(*leaves, backend=backend)[output].square().sum()
            grads.append(torch.autograd.grad(loss, leaves[1:-1]))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.tiny
def test_the_reference_is_what_torch_computes():
    x, r, m, norm_r, norm_m, weight, bias, eps = make(token_gate, 2, 5, 16)
    normed_r, normed_m = F.rms_norm(r, (16,), norm_r, eps), F.rms_norm(m, (16,), norm_m, eps)
    gate = torch.sigmoid(F.linear(torch.cat((normed_r, normed_m), dim=-1), weight, bias))
    result = token_gate(x, r, m, norm_r, norm_m, weight, bias, eps, backend="reference")
    torch.testing.assert_close(result[0], x + torch.lerp(normed_m, normed_r, gate))
    torch.testing.assert_close(result[1], gate)
    result = branch_gains(x, r, m, norm_r, norm_m, norm_m, norm_r, eps, backend="reference")
    torch.testing.assert_close(result, x + norm_m * normed_r + norm_r * normed_m)
    result = channel_gate(x, r, m, x, backend="reference")
    torch.testing.assert_close(result, x + torch.lerp(m, r, torch.sigmoid(x)))


@pytest.mark.tiny
def test_misfits_are_named():
    x, r, m, norm_r, norm_m, weight, bias, eps = make(token_gate, 2, 4, 24)
    with pytest.raises(UserError, match=r"token_gate: m has shape \[2, 4, 23\], expected"):
        token_gate(x, r, m[..., 1:], norm_r, norm_m, weight, bias, eps)
    with pytest.raises(UserError, match="token_gate: weight has shape"):
        token_gate(x, r, m, norm_r, norm_m, weight[:, 1:], bias, eps)
    with pytest.raises(UserError, match="give both norm_r and norm_m or neither"):
        token_gate(x, r, m, norm_r, None, weight, bias, eps)
    with pytest.raises(UserError, match="channel_gate: logits has shape"):
        channel_gate(x, r, m, r[1:])
    with pytest.raises(UserError, match="branch_gains: gain_r has shape"):
        branch_gains(x, r, m, norm_r, norm_m, bias, norm_m, eps)


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
