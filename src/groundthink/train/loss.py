"""Cross-entropy of next tokens, without holding the logits of a large vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.ops.dispatch import triton_obstacle
from groundthink.ops.nll import nll_

LARGE = 1 << 25
"""Logits that are more than this are never held whole."""
HELD = 1 << 24
"""Logits held at once instead: in half precision they stay in the cache of a large GPU."""


def nats(logits: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    """Cross-entropy in fp32 of logits [B, T, V]; targets [B, T] of -100 are not scored."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction=reduction)


def predict(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: State | None, reset: Tensor
) -> tuple[Tensor, State]:
    """Sum of the cross-entropies in nats, a scalar, and the state after the last token."""
    small = targets.numel() * model.config.vocab_size <= LARGE
    if small and triton_obstacle(tokens.device):
        logits, state = model(tokens, state, reset)
        return nats(logits, targets), state  # pyright: ignore
    hidden, state = model.features(tokens, state, reset)
    return chunked_nats(hidden, model.head.weight, targets), state


class Objective(nn.Module):
    """`predict` as a module: parameters of its model can be replaced for the time of a call."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, targets: Tensor, state: State | None, reset: Tensor
    ) -> tuple[Tensor, State]:
        return predict(self.model, tokens, targets, state, reset)


def chunked_nats(hidden: Tensor, weight: Tensor, targets: Tensor, held: int = HELD) -> Tensor:
    """`nats` of the logits hidden weight^T, `held` of them at a time.

    Args:
        hidden: [B, T, C].
        weight: of the head [V, C]; under autocast the products run in its dtype.
        targets: [B, T]; -100 is not scored.
        held: logits that are held at once.
    """
    kind = hidden.device.type
    half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else hidden.dtype
    with torch.autocast(kind, enabled=False):
        flat = hidden.flatten(0, 1).to(dtype)
        return _ChunkedNats.apply(flat, weight, targets.flatten(), held)  # pyright: ignore


class _ChunkedNats(torch.autograd.Function):
    """The gradient of a chunk is made while its logits are there, and only scaled later."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, held: int) -> Tensor:
        product = weight.to(hidden.dtype)
        rows = max(1, held // len(weight))
        room = hidden.new_empty(min(rows, len(hidden)), len(weight))
        dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
        losses = []
        for x, target, dx in zip(
            hidden.split(rows), targets.split(rows), dhidden.split(rows), strict=True
        ):
            logits = torch.mm(x, product.t(), out=room[: len(x)])
            losses.append(nll_(logits, target))
            torch.mm(logits, product, out=dx)
            _add_product(dweight, logits.t(), x)
        ctx.save_for_backward(dhidden, dweight)
        return torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal: Tensor):
        dhidden, dweight = ctx.saved_tensors
        return dhidden * dtotal.to(dhidden.dtype), dweight * dtotal, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b, rounded once where a and b are narrower than the total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif total.device.type == "cuda":
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)  # pyright: ignore
    else:
        total += a @ b
