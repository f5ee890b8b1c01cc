"""The data-dependent token shift of RWKV-6 as its paper has it, in fp32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor


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
    full = torch.promote_types(x.dtype, torch.float32)
    now = x.to(full)
    back = previous(now, last, reset) - now
    hidden = torch.tanh((now + back * maa_x) @ w1.to(full))
    share = torch.einsum("btqr,qrc->qbtc", hidden.unflatten(-1, w2.shape[:2]), w2.to(full))
    mixed = (now + back * (maa[:, None, None] + share)).to(x.dtype)
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
    products = (y @ weight.to(y.dtype).t() for y, weight in zip(rest, weights, strict=True))
    return x_w, *products, last


def raw_decay(x: Tensor, bias: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """bias + tanh(x w1) w2, in fp32 or wider."""
    full = torch.promote_types(x.dtype, torch.float32)
    return bias.to(full) + torch.tanh(x.to(full) @ w1.to(full)) @ w2.to(full)
