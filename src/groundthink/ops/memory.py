"""Tensors that lie side by side in memory are one tensor, without a copy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def aligned(width: int) -> int:
    """Elements from row to row of a matrix that is this wide: products like them aligned."""
    return -(-width // 8) * 8


def stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    """K tensors of a shape as [K, ...]: a view where they lie one after the other, else a copy."""
    first, size = tensors[0], tensors[0].numel()
    if all(_lies(t, first, i * size) and t.is_contiguous() for i, t in enumerate(tensors)):
        return first.as_strided((len(tensors), *first.shape), (size, *first.stride()))
    return torch.stack(tensors)


def in_a_column(matrices: list[Tensor]) -> Tensor:
    """[M, N] each as one [sum M, N]: a view where they lie one after the other, else a copy."""
    first, start = matrices[0], 0
    for matrix in matrices:
        if not (_lies(matrix, first, start) and matrix.is_contiguous()):
            return torch.cat(matrices)
        start += matrix.numel()
    return first.as_strided((start // first.shape[1], first.shape[1]), first.stride())


def split(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """`x.split(sizes, -1)` whose gradients are joined without a copy where they are one already."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return x.split(sizes, dim=-1)
    return _Split.apply(x, sizes)  # pyright: ignore


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, sizes: tuple[int, ...]):
        return x.split(sizes, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        first, width = grads[0], 0
        for grad in grads:
            if grad.stride() != first.stride() or not _lies(grad, first, width):
                return torch.cat(grads, dim=-1), None
            width += grad.shape[-1]
        if first.stride(-1) != 1 or first.stride(-2) < width:
            return torch.cat(grads, dim=-1), None
        return first.as_strided((*first.shape[:-1], width), first.stride()), None


def padded(matrix: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """[M, N] in a dtype, with rows of zeros up to so many."""
    if matrix.shape[0] == rows:
        return matrix.to(dtype)
    room = matrix.new_zeros(rows, matrix.shape[1], dtype=dtype)
    room[: len(matrix)] = matrix
    return room


def joined(left: Tensor, right: Tensor) -> Tensor:
    """Rows [N, A] and [N, B], and zeros up to a multiple of eight columns, as one matrix.

    A view where they are parts of the same aligned rows, which then hold zeros behind them.
    """
    width = left.shape[1] + right.shape[1]
    room = aligned(width)
    if left.stride() == right.stride() == (room, 1) and _lies(right, left, left.shape[1]):
        return left.as_strided((left.shape[0], room), left.stride())
    rest = left.new_zeros(len(left), room - width)
    return torch.cat((left, right, rest) if room > width else (left, right), dim=1)


def _lies(tensor: Tensor, first: Tensor, distance: int) -> bool:
    """Whether a tensor begins so many elements behind the first, in the same memory."""
    return (
        tensor.dtype == first.dtype
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == first.storage_offset() + distance
    )
