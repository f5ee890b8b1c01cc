"""Tensors that lie side by side are joined without a copy, others with one."""

from __future__ import annotations

import pytest
import torch

from groundthink.ops.memory import aligned, in_a_column, joined, padded, split, stacked

pytestmark = pytest.mark.tiny


def same_memory(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_stacked():
    whole = torch.randn(4, 3, 5)
    parts = whole.unbind(0)
    for tensors, shared in (
        (parts, True),
        (parts[1:3], True),
        (parts[::-1], False),
        (parts[::2], False),
        ((parts[0], parts[1].clone()), False),
        (tuple(part.t() for part in parts), False),
    ):
        result = stacked(tensors)
        assert torch.equal(result, torch.stack(tensors))
        assert same_memory(result, whole) == shared


def test_joined():
    rows = torch.randn(6, 16)
    rows[:, 13:] = 0
    left, right = rows[:, :9], rows[:, 9:13]
    assert same_memory(joined(left, right), rows)
    for a, b in ((left, right), (left, rows[:, 10:13]), (left, right.clone()), (right, left)):
        both = torch.cat((a, b), 1)
        assert torch.equal(joined(a, b), torch.nn.functional.pad(both, (0, 16 - both.shape[1])))


def test_in_a_column():
    rows = torch.randn(7, 3)
    for parts, shared in ((rows.split((2, 5)), True), ((rows[:2], rows[3:]), False)):
        assert torch.equal(in_a_column(list(parts)), torch.cat(parts))
        assert same_memory(in_a_column(list(parts)), rows) == shared


def test_padded():
    matrix = torch.randn(5, 3)
    assert torch.equal(padded(matrix, 8, torch.float64)[:5], matrix.double())
    assert not padded(matrix, 8, torch.float64)[5:].any()
    assert padded(matrix, 5, torch.float32) is matrix


class Scaled(torch.autograd.Function):
    """Doubles tensors; their gradients are parts of the same rows, in the order that is given."""

    @staticmethod
    def forward(ctx, order, *tensors):
        ctx.order = order
        return tuple(2 * t for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        rows = torch.cat([2 * grads[i] for i in ctx.order], -1)
        parts = rows.split([grads[i].shape[-1] for i in ctx.order], -1)
        return None, *(parts[ctx.order.index(i)] for i in range(len(grads)))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_gradients_of_a_split_are_joined(order):
    x = torch.randn(2, 5, 12, requires_grad=True)
    parts = split(x, (3, 5, 4))
    for part, expected in zip(parts, x.split((3, 5, 4), -1), strict=True):
        assert torch.equal(part, expected) and same_memory(part, x)
    joined = sum((k + 1) * y.sum() for k, y in enumerate(Scaled.apply(order, *parts)))
    (grad,) = torch.autograd.grad(joined, x)
    assert torch.equal(grad, torch.tensor([2.0] * 3 + [4.0] * 5 + [6.0] * 4).expand(2, 5, 12))


def test_aligned():
    assert [aligned(n) for n in (1, 8, 9, 644)] == [8, 8, 16, 648]
