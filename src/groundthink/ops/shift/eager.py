"""What RWKV-6 does before WKV6, with a hand-written gradient, for eager code on any device.

One blend at a time goes from the shifted input to its projection, forward and back, so that its
tensors stay in the cache; only the input and the hidden units of the blends are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.shift.reference import previous


def project(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    weights: tuple[Tensor, ...],
    reset: Tensor | None,
) -> tuple[Tensor, ...]:
    """The blend of each projection times its weight."""
    full = torch.promote_types(x.dtype, torch.float32)
    given = (t.to(full) for t in (x, last, maa_x, w1, w2, maa))
    weights = tuple(weight.to(full) for weight in weights)
    outputs = _Project.apply(*given, reset, *weights)  # pyright: ignore
    return *(y.to(x.dtype) for y in outputs), x[:, -1].to(last.dtype, copy=True)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, last, maa_x, w1, w2, maa, reset, *weights):
        flat = x.reshape(-1, x.shape[-1])
        back = previous(x, last, reset).sub_(x).view(flat.shape)
        hidden = torch.addcmul(flat, back, maa_x).mm(w1).tanh_()
        ctx.save_for_backward(x, back, hidden, maa_x, w1, w2, maa, reset, *weights)
        outputs = []
        for q, units in enumerate(hidden.chunk(len(maa), 1)):
            blend = torch.addmm(maa[q], units, w2[q])
            blend = torch.addcmul(flat, back, blend, out=blend)
            outputs.append(blend if q == 0 else blend.mm(weights[q - 1].t()))
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, back, hidden, maa_x, w1, w2, maa, reset, *weights = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        dhidden, dw2, dmaa = (torch.empty_like(t) for t in (hidden, w2, maa))
        dx, dback = torch.zeros_like(back), torch.zeros_like(back)
        dweights = []
        parts = zip(hidden.chunk(len(maa), 1), dhidden.chunk(len(maa), 1), grads, strict=True)
        for q, (units, dunits, grad) in enumerate(parts):
            share, grad = torch.addmm(maa[q], units, w2[q]), grad.reshape(len(flat), -1)
            if q:
                dweights.append(grad.t().mm(torch.addcmul(flat, back, share)))
                grad = grad.mm(weights[q - 1])
            dx.add_(grad)
            dback.addcmul_(grad, share)
            dshare = torch.mul(grad, back, out=share)
            dunits.copy_(dshare.mm(w2[q].t()))
            torch.mm(units.t(), dshare, out=dw2[q])
            torch.sum(dshare, 0, out=dmaa[q])
        dhidden = torch.ops.aten.tanh_backward(dhidden, hidden)
        mixed = torch.addcmul(flat, back, maa_x)
        dw1 = mixed.t().mm(dhidden)
        dmixed = torch.mm(dhidden, w1.t(), out=mixed)
        dback.addcmul_(dmixed, maa_x)
        dx.add_(dmixed).sub_(dback)
        dmaa_x = dmixed.mul_(back).sum(0)
        dx, dback = dx.view_as(x), dback.view_as(x)
        if reset is not None:
            dback.masked_fill_(reset[..., None], 0)
        dx[:, :-1] += dback[:, 1:]
        return dx, dback[:, 0], dmaa_x, dw1, dw2, dmaa, None, *dweights
