"""Causal depthwise convolution over time, with its window carried from call to call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Each channel of each token becomes a weighted sum of its last W inputs.

    ``y_t = bias + sum_j weight[:, W-1-j] x_{t-j}``, where a tap older than the last reset is zero.

    Args:
        x: input [B, T, D], T >= 1.
        weight: taps, oldest first, [D, W] or as in nn.Conv1d [D, 1, W].
        bias: [D].
        window: the W - 1 inputs before the first token, oldest first, [B, D, W-1].
        reset: bool [B, T]; where true no earlier input is seen by that token or later ones.

    Returns:
        y [B, T, D] in the dtype of x (sums are taken in fp32 or wider), and the window after the
        last token in the dtype of `window`.
    """
    weight = weight.view(weight.shape[0], -1)
    past = weight.shape[1] - 1
    full = torch.promote_types(x.dtype, torch.float32)
    inputs = torch.cat((window.transpose(1, 2).to(full), x.to(full)), dim=1)  # [B, W-1+T, D]
    tail, keep = inputs[:, x.shape[1] :], None
    if reset is not None:
        document = F.pad(reset, (past, 0)).cumsum(dim=1)[..., None]
        keep = document.unfold(1, past + 1, 1) == document[:, past:, :, None]  # [B, T, 1, W]
        tail = tail * (document[:, x.shape[1] :] == document[:, -1:])
    y = _Taps.apply(inputs, weight.to(full), bias.to(full), keep)
    return y.to(x.dtype), tail.transpose(1, 2).to(window.dtype, copy=True)


class _Taps(torch.autograd.Function):
    """The weighted sum as W shifted multiply-adds.

    On the CPU about half the time of the same lines under autograd, or of F.conv1d.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight, keep)
        taps = weight.t().contiguous()  # a strided row would halve the speed
        steps = inputs.shape[1] - len(taps) + 1
        y = torch.addcmul(bias, inputs[:, -steps:], taps[-1])
        work = torch.empty_like(y)
        for i, tap in enumerate(taps[:-1]):
            if keep is not None:
                tap = torch.mul(tap, keep[..., i], out=work)
            y.addcmul_(inputs[:, i : i + steps], tap)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        inputs, weight, keep = ctx.saved_tensors
        taps = weight.t().contiguous()
        steps = dy.shape[1]
        dinputs, dtaps = torch.zeros_like(inputs), torch.empty_like(taps)
        work = torch.empty_like(dy)
        for i, tap in enumerate(taps):
            grad = dy if keep is None else torch.mul(dy, keep[..., i], out=work)
            dinputs[:, i : i + steps].addcmul_(grad, tap)
            dtaps[i] = torch.mul(grad, inputs[:, i : i + steps], out=work).sum(dim=(0, 1))
        return dinputs, dtaps.t(), dy.sum(dim=(0, 1)), None
