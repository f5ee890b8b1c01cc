"""The short convolution: kernels against fp64, resets and windows, the reference and the layer."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
import torch.nn.functional as F
from kernel_laws import DEVICE, HALF, normal

from groundthink.errors import UserError
from groundthink.ops.conv import BACKENDS, conv_silu, conv_silu_dt, parts

every_backend = pytest.mark.parametrize("backend", BACKENDS["conv_silu"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(batch, steps, size, heads=3, width=4, dtype=torch.float32, resets=True):
    """Arguments of conv_silu_dt: x and dt are slices of one projection."""
    wide = normal(batch, steps, 8 + size + heads, dtype=dtype)
    reset = torch.rand(batch, steps, device=DEVICE) < 0.2 if resets else None
    weight, bias = normal(size, width), normal(size)
    window = normal(batch, size, width - 1)
    return wide[..., 8 : 8 + size], wide[..., -heads:], weight, bias, normal(heads), window, reset


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 15, 20), (3, 1, 16), (2, 2, 5), (1, 33, 130), (2, 9, 8, 40, 3), (1, 5, 8, 1, 1)]
)
def test_kernels_equal_the_fp64_reference(shape, resets):
    kernel_laws.equals_the_reference(conv_silu_dt, make(*shape, resets=resets))


@pytest.mark.usefixtures("interpreter")
def test_kernels_in_half_precision():
    kernel_laws.equals_the_reference(conv_silu_dt, make(2, 9, 24, dtype=HALF), HALF)


def projected(x, weight, taps, bias, dt_bias, window, reset, *, backend):
    """What Mamba-2 does before SSD: the gradients of xbc and dt come in the same rows."""
    sizes = len(weight) - len(bias) - len(dt_bias), len(bias), len(dt_bias)
    z, xbc, dt = parts(x, weight, sizes, backend=backend)
    return z, *conv_silu_dt(xbc, dt, taps, bias, dt_bias, window, reset, backend=backend)


def projection(steps, dtype=torch.float32):
    _, _, *rest = make(2, steps, 20)
    return normal(2, steps, 12, dtype=dtype), normal(30, 12, dtype=dtype), *rest


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("steps", [1, 9])
def test_projection_in_parts(steps):
    kernel_laws.equals_the_reference(projected, projection(steps))
    with pytest.raises(UserError, match="parts: weight has shape"):
        parts(normal(2, steps, 12), normal(30, 12), (7, 20, 4))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("at", [[0], [8], [3, 4, 5], [1, 3], list(range(9))])
def test_resets_at_any_token(at):
    *args, _ = make(2, 9, 16)
    reset = torch.zeros(2, 9, dtype=torch.bool, device=DEVICE)
    reset[1, at] = True
    kernel_laws.equals_the_reference(conv_silu_dt, (*args, reset))


@pytest.mark.usefixtures("interpreter")
@every_backend
def test_nothing_passes_a_reset(backend):
    """NaN before a reset leaves values and input gradients after it alone."""
    x, _, weight, bias, _, window, _ = make(1, 9, 16)
    reset = torch.zeros(1, 9, dtype=torch.bool, device=DEVICE)
    reset[0, 4] = True
    whole = conv_silu(x, weight, bias, window, reset, backend=backend)[0]
    x = x.clone()
    x[:, :4] = window[:] = torch.nan
    x.requires_grad_()
    y, after = conv_silu(x, weight, bias, window, reset, backend=backend)
    assert torch.equal(y[:, 4:], whole[:, 4:])
    assert y[:, 0].isnan().all() and not after.isnan().any()
    (dx,) = torch.autograd.grad(y[:, 4:].sum(), x)
    assert not dx[:, 4:].isnan().any()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("sizes", [[7, 1, 2, 10], [1] * 20])
@every_backend
def test_whole_equals_pieces_and_steps(backend, sizes):
    x, dt, weight, bias, dt_bias, window, reset = make(2, 20, 16)
    whole = conv_silu_dt(x, dt, weight, bias, dt_bias, window, reset, backend=backend)
    parts = []
    for piece in zip(*(t.split(sizes, 1) for t in (x, dt, reset)), strict=True):
        y, step, window = conv_silu_dt(
            piece[0], piece[1], weight, bias, dt_bias, window, piece[2], backend=backend
        )
        parts.append((y, step))
    y, step = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
    for a, b in zip((y, step, window), whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_kernels_repeat_bitwise_and_read_no_uninitialised_memory():
    kernel_laws.repeats_bitwise(conv_silu_dt, make(2, 10, 16))


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_an_empty_batch():
    kernel_laws.takes_an_empty_batch(conv_silu_dt, make(0, 4, 16))


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_kernels_compile_without_a_graph_break():
    kernel_laws.compiles(conv_silu_dt, make(2, 5, 16))


@pytest.mark.usefixtures("interpreter")
@every_backend
def test_it_is_the_convolution_of_torch(backend):
    x, dt, weight, bias, dt_bias, window, reset = make(2, 11, 16)
    y, step, after = conv_silu_dt(x, dt, weight, bias, dt_bias, window, backend=backend)
    inputs = torch.cat((window, x.mT), dim=2)
    expected = F.silu(F.conv1d(inputs, weight[:, None], bias, groups=16)).mT
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(after, inputs[..., -3:])
    torch.testing.assert_close(step, F.softplus(dt + dt_bias))
    whole = conv_silu_dt(x, dt, weight, bias, dt_bias, window, reset, backend=backend)
    alone = conv_silu(x, weight, bias, window, reset, backend=backend)
    assert torch.equal(alone[0], whole[0]) and torch.equal(alone[1], whole[2])


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_step_sizes_are_exact_for_any_input():
    dt = torch.tensor([-100.0, -30, -16, -5, -1e-3, 0, 1e-3, 5, 20, 100], device=DEVICE)
    x, _, weight, bias, _, window, _ = make(1, 1, 8)
    step = conv_silu_dt(
        x, dt[None, None], weight, bias, torch.zeros_like(dt), window, backend="triton"
    )[1]
    torch.testing.assert_close(step[0, 0], F.softplus(dt.double()).float(), rtol=1e-6, atol=0)


@pytest.mark.tiny
def test_misfits_are_named():
    x, dt, weight, bias, dt_bias, window, reset = make(2, 4, 16)
    with pytest.raises(UserError, match="conv_silu: weight has shape"):
        conv_silu(x, weight[1:], bias, window)
    with pytest.raises(UserError, match="conv_silu: bias has shape"):
        conv_silu(x, weight, bias[1:], window)
    with pytest.raises(UserError, match=r"conv_silu: window has shape .* expected \[2, 16, 3\]"):
        conv_silu(x, weight, bias, window[..., 1:])
    with pytest.raises(UserError, match="conv_silu: reset has shape"):
        conv_silu(x, weight, bias, window, reset[:, 1:])
    with pytest.raises(UserError, match="conv_silu_dt: dt has shape"):
        conv_silu_dt(x, dt[1:], weight, bias, dt_bias, window)
    with pytest.raises(UserError, match="conv_silu_dt: dt_bias has shape"):
        conv_silu_dt(x, dt, weight, bias, dt_bias[1:], window)
    five = normal(16, 5), bias, normal(2, 16, 4)
    assert conv_silu(x, *five)[0].shape == x.shape
    with pytest.raises(UserError, match="up to 4 taps, not 5"):
        conv_silu(x, *five, backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(8, 1, 384, 4), (3, 1000, 200, 5), (16, 1024, 1664, 24), (1, 65536, 384, 4)]
)
def test_bf16_on_the_gpu(shape):
    args = make(*shape, dtype=torch.bfloat16)
    kernel_laws.equals_the_reference(conv_silu_dt, args, torch.bfloat16)
    kernel_laws.repeats_bitwise(conv_silu_dt, args)


@pytest.mark.gpu
def test_projection_in_parts_on_the_gpu():
    args = projection(500, torch.bfloat16)
    kernel_laws.equals_the_reference(projected, args, torch.bfloat16)
    kernel_laws.captures(projected, args)


@pytest.mark.gpu
def test_graph_capture_and_compilation_on_the_gpu():
    args = make(4, 64, 384, dtype=torch.bfloat16)
    kernel_laws.captures(conv_silu_dt, args)
    kernel_laws.compiles(conv_silu_dt, args)
