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
    inputs = torch.cat((wide(window).transpose(1, 2), wide(x)), dim=1)  # [B, W-1+T, D]
    if reset is None:
        reset = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    document = F.pad(reset, (width - 1, 0)).cumsum(dim=1)[..., None]
    y = bias
    for i, tap in enumerate(weight.t()):
        same = document[:, i : i + steps] == document[:, width - 1 :]
        y = y + tap * inputs[:, i : i + steps].where(same, 0)
    tail = inputs[:, steps:].where(document[:, steps:] == document[:, -1:], 0)
    return F.silu(y).to(x.dtype), tail.transpose(1, 2).to(window.dtype)


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
