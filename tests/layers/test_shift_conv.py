"""Token shift and causal convolution: known answers, state equivalence, resets, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from groundthink.layers.shift import token_shift
from groundthink.ops.conv import conv_silu

BATCH, CHANNELS, WIDTH = 2, 6, 4


def make(steps, resets=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    reset = torch.rand(BATCH, steps, generator=generator) < 0.2 if resets else None
    window = normal(BATCH, CHANNELS, WIDTH - 1)
    return normal(BATCH, steps, CHANNELS), normal(CHANNELS, WIDTH), normal(CHANNELS), window, reset


def window_oracle(x, weight, bias, window, reset):
    """One token at a time: zero the window at a reset, push the token, weigh."""
    out = []
    for t in range(x.shape[1]):
        if reset is not None:
            window = window.masked_fill(reset[:, t, None, None], 0)
        taps = torch.cat((window, x[:, t, :, None]), dim=-1)
        out.append((taps * weight).sum(-1) + bias)
        window = taps[..., 1:]
    return torch.stack(out, dim=1), window


def conv_oracle(*args):
    y, window = window_oracle(*args)
    return F.silu(y), window


def shift_oracle(x, last, reset):
    """The convolution whose only tap is one token ago."""
    weight = x.new_tensor([1.0, 0.0]).expand(x.shape[-1], 2)
    shifted, window = window_oracle(x, weight, torch.zeros_like(last[0]), last[..., None], reset)
    return shifted, window[..., 0]


def in_pieces(op, x, carry, reset, sizes):
    pieces = []
    for x_piece, reset_piece in zip(x.split(sizes, 1), reset.split(sizes, 1), strict=True):
        y, carry = op(x_piece, carry, reset_piece)
        pieces.append(y)
    return torch.cat(pieces, dim=1), carry


@pytest.mark.tiny
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 33])
def test_values_and_gradients_equal_the_token_by_token_oracle(steps, resets):
    x, weight, bias, window, reset = make(steps, resets)
    for op, oracle, inputs in (
        (conv_silu, conv_oracle, (x, weight, bias, window)),
        (token_shift, shift_oracle, (x, window[..., 0])),
    ):
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        results = []
        for function in (op, oracle):
            y, carry = function(*inputs, reset)
            loss = (y * torch.cos(y)).sum() + (carry * torch.sin(carry)).sum()
            results.append((y, carry, *torch.autograd.grad(loss, inputs)))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.tiny
def test_convolution_equals_torch_conv1d():
    x, weight, bias, window, _ = make(9)
    padded = torch.cat((window, x.transpose(1, 2)), dim=2)
    expected = F.silu(F.conv1d(padded, weight[:, None], bias, groups=CHANNELS)).transpose(1, 2)
    torch.testing.assert_close(conv_silu(x, weight, bias, window)[0], expected)


@pytest.mark.tiny
@pytest.mark.parametrize("sizes", [[12, 5], [1] * 17, [2, 1, 3, 11]])
def test_whole_equals_pieces(sizes):
    x, weight, bias, window, reset = make(17)
    for op, carry in (
        (lambda x, carry, reset: conv_silu(x, weight, bias, carry, reset), window),
        (token_shift, window[..., 0]),
    ):
        pieces = in_pieces(op, x, carry, reset, sizes)
        torch.testing.assert_close(pieces, op(x, carry, reset), rtol=0, atol=1e-14)


@pytest.mark.tiny
def test_window_after_a_reset_holds_zeros_for_what_lies_before_it():
    x, weight, bias, window, _ = make(5)
    reset = torch.zeros(BATCH, 5, dtype=torch.bool)
    reset[:, 3] = True
    carried = conv_silu(x, weight, bias, window, reset)[1]
    expected = torch.cat((torch.zeros_like(x[:, :1]), x[:, 3:]), dim=1).transpose(1, 2)
    assert torch.equal(carried, expected)


@pytest.mark.tiny
def test_gradcheck():
    x, weight, bias, window, reset = make(5)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, window)]
    assert torch.autograd.gradcheck(lambda *args: conv_silu(*args, reset), inputs)


@pytest.mark.tiny
def test_dtypes_of_output_and_state():
    x, weight, bias, window, reset = make(40, dtype=torch.float32)
    y, carried = conv_silu(x.bfloat16(), weight, bias, window, reset)
    assert (y.dtype, carried.dtype) == (torch.bfloat16, torch.float32)
    exact = conv_silu(x.bfloat16().double(), weight.double(), bias.double(), window.double(), reset)
    torch.testing.assert_close(y.double(), exact[0], rtol=2**-8, atol=1e-5)  # rounded once
    shifted, last = token_shift(x.bfloat16(), window[..., 0], reset)
    assert (shifted.dtype, last.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.tiny
def test_carried_state_does_not_keep_the_sequence_alive():
    x, weight, bias, window, reset = make(40)
    for carry in (conv_silu(x, weight, bias, window, reset)[1], token_shift(x, x[:, 0])[1]):
        assert carry.untyped_storage().nbytes() == carry.nbytes


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    x, weight, bias, window, reset = make(20, dtype=torch.float32)
    compiled = torch.compile(conv_silu, fullgraph=True)
    results = []
    for op in (conv_silu, compiled):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias, window)]
        y, carried = op(*inputs, reset)
        results.append((y, carried, *torch.autograd.grad(y.square().sum() + carried.sum(), inputs)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
