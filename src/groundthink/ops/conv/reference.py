"""The short convolution of Mamba-2 written out tap by tap, in fp32 or wider."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.norm.reference import wide


def conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_j weight[:, W-1-j] x_{t-j}), and the last W - 1 inputs."""
    steps, width = x.shape[1], weight.shape[1]
    inputs = torch.cat((wide(window), wide(x).mT), dim=2)  # [B, D, W-1+T]
    taps, tail = inputs.unfold(2, width, 1), inputs[..., steps:]  # [B, D, T, W], [B, D, W-1]
    if reset is not None:
        document = F.pad(reset, (width - 1, 0)).cumsum(dim=1)[:, None]
        near = document.unfold(2, width, 1)
        taps = taps.where(near == near[..., -1:], 0)
        tail = tail.where(document[..., steps:] == document[..., -1:], 0)
    y = torch.linalg.vecdot(taps, weight.to(taps.dtype)[:, None]).mT + bias
    return F.silu(y).to(x.dtype), tail.to(window.dtype, copy=True)


def conv_silu_dt(
    x: Tensor,
    dt: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor,
    window: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_silu`, and softplus(dt + dt_bias)."""
    y, window = conv_silu(x, weight, bias, window, reset)
    return y, F.softplus(wide(dt) + dt_bias), window


def parts(x: Tensor, weight: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Three products: a gradient that is cut from one would first be gathered for it."""
    return tuple(F.linear(x, part) for part in weight.split(sizes))
