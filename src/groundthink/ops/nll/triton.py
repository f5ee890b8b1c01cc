"""The negative log-likelihood as a Triton kernel: a program reads and overwrites a row."""

from __future__ import annotations

import triton.language as tl

from groundthink.ops.launching import kernel

FAR = tl.constexpr(-1e30)  # finite, so that the difference of two is no NaN


@kernel
def _nll(logits_ptr, targets_ptr, losses_ptr, step, V, BLOCK: tl.constexpr, ONCE: tl.constexpr):
    """ONCE: a row is a block, and stays in registers."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * step
    column = tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row).to(tl.int32)
    chosen = tl.load(logits_ptr + target, target >= 0, 0).to(tl.float32)
    kind = logits_ptr.dtype.element_ty
    if ONCE:
        x = tl.load(logits_ptr + column, column < V, FAR).to(tl.float32)
        top = tl.max(x, 0)
        power = tl.exp(x - top)
        total = tl.sum(power, 0)
    else:
        tops = tl.full((BLOCK,), FAR, tl.float32)
        totals = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, V, BLOCK):
            x = tl.load(logits_ptr + first + column, first + column < V, FAR).to(tl.float32)
            higher = tl.maximum(tops, x)
            totals = totals * tl.exp(tops - higher) + tl.exp(x - higher)
            tops = higher
        top = tl.max(tops, 0)
        total = tl.sum(totals * tl.exp(tops - top), 0)
    scored = (target >= 0).to(tl.float32)
    tl.store(losses_ptr + row, tl.where(target >= 0, tl.log(total) + top - chosen, 0.0))
    share = scored / total
    if ONCE:
        gradient = power * share - tl.where(column == target, scored, 0.0)
        tl.store(logits_ptr + column, gradient.to(kind), column < V)
    else:
        for first in range(0, V, BLOCK):
            at = first + column
            x = tl.load(logits_ptr + at, at < V, FAR).to(tl.float32)
            gradient = tl.exp(x - top) * share - tl.where(at == target, scored, 0.0)
            tl.store(logits_ptr + at, gradient.to(kind), at < V)
