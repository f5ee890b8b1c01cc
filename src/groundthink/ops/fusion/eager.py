"""The token gate with a hand-written gradient, for eager code on any device.

It keeps its inputs alone: on a CPU the time is that of moving tensors through memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.norm.eager import rms_norm_backward, scale_of


def token_gate(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + a r + (1 - a) m with a = sigmoid(weight [r; m] + bias)."""
    full = torch.promote_types(torch.promote_types(x.dtype, r.dtype), torch.float32)
    inputs = (t if t is None else t.to(full) for t in (x, r, m, norm_r, norm_m, weight, bias))
    y, a = _TokenGate.apply(*inputs, eps)  # pyright: ignore
    return y.to(x.dtype), a


class _TokenGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, r, m, norm_r, norm_m, weight, bias, eps):
        (normed_r, scale_r), (normed_m, scale_m) = _branch(r, norm_r, eps), _branch(m, norm_m, eps)
        w_r, w_m = weight[0].chunk(2)
        a = (normed_r @ w_r).add_(normed_m @ w_m).add_(bias).sigmoid_().unsqueeze(-1)
        ctx.save_for_backward(r, m, norm_r, norm_m, weight, a, scale_r, scale_m)
        return torch.lerp(normed_m, normed_r, a).add_(x), a

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, da):
        r, m, norm_r, norm_m, weight, a, scale_r, scale_m = ctx.saved_tensors
        normed_r, normed_m = _again(r, norm_r, scale_r), _again(m, norm_m, scale_m)
        w_r, w_m = weight[0].chunk(2)
        difference = torch.sub(normed_r, normed_m).mul_(dy).sum(-1, keepdim=True)
        dlogit = (difference + da).mul_(a).mul_(1 - a)
        flat = dlogit.flatten()
        dweight = torch.cat((flat @ normed_r.flatten(0, -2), flat @ normed_m.flatten(0, -2)))[None]
        dr = (a * dy).addcmul_(dlogit, w_r)
        dm = (dy - a * dy).addcmul_(dlogit, w_m)
        dnorm_r = dnorm_m = None
        if norm_r is not None:
            dr, dnorm_r = rms_norm_backward(dr, r, norm_r, scale_r)
            dm, dnorm_m = rms_norm_backward(dm, m, norm_m, scale_m)
        return dy, dr, dm, dnorm_r, dnorm_m, dweight, flat.sum()[None], None


def _branch(x: Tensor, norm: Tensor | None, eps: float) -> tuple[Tensor, Tensor | None]:
    """A branch output after its RMSNorm, if it has one, and the scale of that."""
    if norm is None:
        return x, None
    scale = scale_of(x, eps)
    return (x * scale).mul_(norm), scale


def _again(x: Tensor, norm: Tensor | None, scale: Tensor | None) -> Tensor:
    return x if norm is None or scale is None else (x * scale).mul_(norm)
