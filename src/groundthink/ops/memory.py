"""Tensors that lie side by side in memory are one tensor, without a copy."""

from __future__ import annotations

import torch
from torch import Tensor


def aligned(width: int) -> int:
    """Elements from row to row of a matrix that is this wide: products like them aligned."""
    return -(-width // 8) * 8


def stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    """K tensors of a shape as [K, ...]: a view where they lie one after the other, else a copy."""
    first, size = tensors[0], tensors[0].numel()
    if all(_lies(t, first, i * size) and t.is_contiguous() for i, t in enumerate(tensors)):
        return first.as_strided((len(tensors), *first.shape), (size, *first.stride()))
    return torch.stack(tensors)


def joined(left: Tensor, right: Tensor) -> Tensor:
    """Rows [N, A] and [N, B] as [N, A + B]: a view where they are parts of the same rows."""
    width = left.shape[1] + right.shape[1]
    if left.stride() == right.stride() and _lies(right, left, left.shape[1]):
        return left.as_strided((left.shape[0], width), left.stride())
    return torch.cat((left, right), dim=1)


def _lies(tensor: Tensor, first: Tensor, distance: int) -> bool:
    """Whether a tensor begins so many elements behind the first, in the same memory."""
    return (
        tensor.dtype == first.dtype
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == first.storage_offset() + distance
    )
