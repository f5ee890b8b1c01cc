"""The data-dependent token shift of RWKV-6 as its paper has it, in fp32 or wider."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.norm.reference import wide


def previous(x: Tensor, last: Tensor, reset: Tensor | None) -> Tensor:
    """The token before each [B, T, C] in the dtype of x: `last` first, zeros at a reset."""
    shifted = torch.cat((last[:, None].to(x.dtype), x[:, :-1]), dim=1)
    return shifted if reset is None else shifted.masked_fill_(reset[..., None], 0)


def ddlerp(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Eagle and Finch, eq. 14-15."""
    now = wide(x)
    back = previous(now, last, reset) - now
    hidden = torch.tanh(torch.addcmul(now, back, maa_x) @ w1.to(now.dtype))
    units = hidden.view(-1, *w2.shape[:2]).transpose(0, 1)  # [5, B T, R]
    maa, w2 = maa.to(now.dtype)[:, None], w2.to(now.dtype)
    share = torch.baddbmm(maa, units, w2).view(len(w2), *x.shape)
    mixed = torch.addcmul(now, back, share).to(x.dtype)
    return mixed[0], mixed[1:], now[:, -1].to(last.dtype, copy=True)


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
    x_w, rest, last = ddlerp(x, last, maa_x, w1, w2, maa, reset)
    products = (F.linear(y, w.to(y.dtype)) for y, w in zip(rest, weights, strict=True))
    return x_w, *products, last


def raw_decay(x: Tensor, bias: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """bias + tanh(x w1) w2, in fp32 or wider."""
    x = wide(x)
    return bias.to(x.dtype) + torch.tanh(x @ w1.to(x.dtype)) @ w2.to(x.dtype)
