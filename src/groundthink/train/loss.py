"""Cross-entropy of next tokens, without holding the logits of a large vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.layers.state import State
from groundthink.models.base import LanguageModel

HELD = 1 << 25
"""Most logits held at once: 128 MB in fp32."""


def nats(logits: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    """Cross-entropy in fp32 of logits [B, T, V]; targets [B, T] of -100 are not scored."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction=reduction)


def predict(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: State | None, reset: Tensor
) -> tuple[Tensor, State]:
    """Sum of the cross-entropies in nats, a scalar, and the state after the last token."""
    if targets.numel() * model.config.vocab_size <= HELD:
        logits, state = model(tokens, state, reset)
        return nats(logits, targets), state  # pyright: ignore
    hidden, state = model.features(tokens, state, reset)
    return chunked_nats(hidden, model.head.weight, targets), state


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
        total = torch.zeros((), device=hidden.device)
        dhidden, dweight = torch.empty_like(hidden), torch.zeros_like(weight)
        rows = max(1, held // len(weight))
        for x, target, dx in zip(
            hidden.split(rows), targets.split(rows), dhidden.split(rows), strict=True
        ):
            log_p = (x @ product.t()).float().log_softmax(-1)
            at, scored = target.clamp(min=0)[:, None], (target >= 0)[:, None]
            total -= (log_p.gather(1, at) * scored).sum()
            dlogits = log_p.exp_().scatter_add_(1, at, -torch.ones_like(at, dtype=log_p.dtype))
            dlogits = dlogits.mul_(scored).to(hidden.dtype)
            torch.mm(dlogits, product, out=dx)
            dweight += dlogits.t() @ x
        ctx.save_for_backward(dhidden, dweight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal: Tensor):
        dhidden, dweight = ctx.saved_tensors
        return dhidden * dtotal.to(dhidden.dtype), dweight * dtotal, None, None
