"""SSD in chunks: matrix products inside a chunk, the recurrence only from chunk to chunk.

Dao and Gu 2024, section 6. The gradient is written by hand: it saves the inputs and a state a
chunk, and computes most of the rest again. Mild decays take the fast form (`mild`), any others
the one with a decay for every pair of tokens (`pairs`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.ssd import mild, pairs
from groundthink.ops.ssd.reference import ssd_reference


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The contract of `ssd_reference`; safe for any decay, exact for resets at any token."""
    with _full_precision(x):
        if x.shape[1] == 1:
            return ssd_reference(x, dt, A, B, C, D, state, reset)
        return _Scan.apply(x, dt, A, B, C, D, state, reset)  # pyright: ignore


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast off: it would round the operands of every matrix product to half precision."""
    return torch.autocast(tensor.device.type, enabled=False)


def _mild_exponents(dt: Tensor, A: Tensor, groups: int) -> Tensor | None:
    """What `mild` needs of the decays; None if they are not mild, or not known yet."""
    if torch.compiler.is_compiling():
        return None
    a = mild.exponents(dt, A, groups)
    return a if a.abs().max() <= mild.LIMIT else None  # false for NaN


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state, reset):
        a = _mild_exponents(dt, A, B.shape[2])
        if a is None:
            y, final, saved = pairs.forward(x, dt, A, B, C, D, state, reset)
        else:
            y, final, saved = mild.forward(a, x, dt, A, B, C, D, state, reset)
        ctx.save_for_backward(x, dt, A, B, C, D, reset, *saved)
        ctx.mild = a is not None
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dfinal):
        x, dt, A, B, C, D, reset, *saved = ctx.saved_tensors
        given = x, dt, A, B, C, D, reset, saved, dy, dfinal
        with _full_precision(dy):
            if ctx.mild:
                return *mild.gradients(mild.exponents(dt, A, B.shape[2]), *given), None
            return *pairs.gradients(*given), None
