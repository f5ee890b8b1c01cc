"""What RWKV-6 does before WKV6, with a hand-written gradient, for eager code on any device.

One blend at a time goes from the shifted input to its projection, forward and back, so that its
tensors stay in the cache; only the input and the hidden units of the blends are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.cuts import once
from groundthink.ops.shift import reference
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
    """The blend of each projection times its weight.

    Compiled code takes the reference: it cannot ask where the resets are, and fuses the blends.
    """
    if torch.compiler.is_compiling():
        return reference.project(x, last, maa_x, w1, w2, maa, weights, reset)
    full = torch.promote_types(x.dtype, torch.float32)
    given = (t.to(full) for t in (x, last, maa_x, w1, w2, maa))
    weights = tuple(weight.to(full) for weight in weights)
    outputs = _Project.apply(*given, reset, *weights)  # pyright: ignore
    return *(y.to(x.dtype) for y in outputs), x[:, -1].to(last.dtype, copy=True)


class _Project(torch.autograd.Function):
    """One more hidden unit a blend is always 1 and carries maa: no product needs a bias."""

    @staticmethod
    def forward(ctx, x, last, maa_x, w1, w2, maa, reset, *weights):
        flat = x.reshape(-1, x.shape[-1])
        back = previous(x, last, None).sub_(x)
        ctx.cut = None
        if reset is not None:
            ctx.cut = once(reset, "at", lambda: reset.nonzero(as_tuple=True))
            back[ctx.cut] = -x[ctx.cut]
        back = back.view(flat.shape)
        blends, rank, _ = w2.shape
        w1 = F.pad(w1.unflatten(1, (blends, rank)), (0, 1)).flatten(1)
        w2 = torch.cat((w2, maa[:, None]), 1)  # [5, R+1, C]
        hidden = torch.addcmul(flat, back, maa_x).mm(w1).tanh_()
        hidden.view(-1, blends, rank + 1)[..., -1] = 1
        ctx.save_for_backward(x, back, hidden, maa_x, w1, w2, *weights)
        outputs = []
        for q, units in enumerate(hidden.chunk(blends, 1)):
            blend = units.mm(w2[q])
            blend = torch.addcmul(flat, back, blend, out=blend)
            outputs.append(blend if q == 0 else blend.mm(weights[q - 1].t()))
        return tuple(y.view(*x.shape[:-1], -1) for y in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, back, hidden, maa_x, w1, w2, *weights = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        dhidden, dw2 = torch.empty_like(hidden), torch.empty_like(w2)
        dx = dback = None
        dweights = []
        parts = zip(hidden.chunk(len(w2), 1), dhidden.chunk(len(w2), 1), grads, strict=True)
        for q, (units, dunits, grad) in enumerate(parts):
            share, grad = units.mm(w2[q]), grad.reshape(len(flat), -1)
            if q:
                dweights.append(grad.t().mm(torch.addcmul(flat, back, share)))
                grad = grad.mm(weights[q - 1])
            dx = grad.clone() if dx is None else dx.add_(grad)
            dback = grad * share if dback is None else dback.addcmul_(grad, share)
            dshare = torch.mul(grad, back, out=share)
            torch.mm(dshare, w2[q].t(), out=dunits)
            torch.mm(units.t(), dshare, out=dw2[q])
        assert dx is not None and dback is not None
        dhidden = torch.ops.aten.tanh_backward(dhidden, hidden)  # 0 where the unit is 1
        mixed = torch.addcmul(flat, back, maa_x)
        dw1 = mixed.t().mm(dhidden).unflatten(1, (len(w2), -1))[..., :-1].flatten(1)
        dmixed = torch.mm(dhidden, w1.t(), out=mixed)
        dback.addcmul_(dmixed, maa_x)
        dx.add_(dmixed).sub_(dback)
        dmaa_x = dmixed.mul_(back).sum(0)
        dx, dback = dx.view_as(x), dback.view_as(x)
        if ctx.cut is not None:
            dback[ctx.cut] = 0
        dx[:, :-1] += dback[:, 1:]
        return dx, dback[:, 0], dmaa_x, dw1, dw2[:, :-1], dw2[:, -1], None, *dweights
