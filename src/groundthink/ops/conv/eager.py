"""Convolution and SiLU with a hand-written gradient, for eager code on any device.

The convolution is torch's depthwise one over channels-last images of height 1, many times as fast
on a CPU as over channels-first sequences. It knows no resets: the few tokens whose window holds
one are computed again by themselves. Only the input is kept for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.conv import reference


def conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_j weight[:, W-1-j] x_{t-j}), and the last W - 1 inputs.

    Compiled code takes the reference: it cannot ask where the resets are, and fuses the taps.
    """
    if torch.compiler.is_compiling():
        return reference.conv_silu(x, weight, bias, window, reset)
    y = _ConvSiLU.apply(x, weight, bias, window, reset)  # pyright: ignore
    return y, carried(x, window, reset)


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
    full = torch.promote_types(dt_bias.dtype, torch.float32)
    return y, F.softplus(dt.to(full) + dt_bias), window


def carried(x: Tensor, window: Tensor, reset: Tensor | None) -> Tensor:
    """The window after the last token [B, D, W-1]."""
    past = window.shape[2]
    tail = torch.cat((window.transpose(1, 2).to(x.dtype), x[:, -past:] if past else x[:, :0]), 1)
    tail = tail[:, tail.shape[1] - past :]
    if reset is not None:
        count = F.pad(reset, (past, 0)).cumsum(1)[:, reset.shape[1] :, None]
        last = reset.sum(1)[:, None, None]
        tail = tail.masked_fill(count != last, 0)
    return tail.transpose(1, 2).to(window.dtype, copy=True)


class _Cut(NamedTuple):
    """The tokens whose window holds a reset: their batch and place, and which taps they keep."""

    at: tuple[Tensor, Tensor]  # [M] each
    keep: Tensor  # bool [M, W, 1]

    @classmethod
    def of(cls, reset: Tensor | None, width: int) -> _Cut | None:
        if reset is None or not reset.any():
            return None
        count = F.pad(reset, (width - 1, 0)).cumsum(1).unfold(1, width, 1)  # [B, T, W]
        keep = count == count[..., -1:]
        batch, place = (~keep).any(-1).nonzero(as_tuple=True)
        return cls((batch, place), keep[batch, place][..., None])

    def taps(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Where the taps of the tokens lie in [B, W-1+T]."""
        batch, place = self.at
        return batch[:, None], place[:, None] + torch.arange(
            self.keep.shape[1], device=place.device
        )


class _ConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, window, reset):
        ctx.save_for_backward(x, weight, bias, window, reset)
        inputs, cut = _inputs(x, weight, window), _Cut.of(reset, weight.shape[1])
        return F.silu(_convolve(inputs, weight, bias, cut)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        x, weight, bias, window, reset = ctx.saved_tensors
        inputs, cut = _inputs(x, weight, window), _Cut.of(reset, weight.shape[1])
        y = _convolve(inputs, weight, bias, cut)
        dy = torch.ops.aten.silu_backward(dout.to(y.dtype), y)
        dbias = dy.sum((0, 1))
        steps, width = x.shape[1], weight.shape[1]
        if cut is not None:
            drows = dy[cut.at][:, None]  # [M, 1, D]
            dy[cut.at] = 0
        dinputs = _depthwise(F.pad(dy, (0, 0, width - 1, width - 1)), weight.flip(1), None)
        work = torch.empty_like(dy)
        dweight = torch.stack(
            [torch.mul(dy, inputs[:, i : i + steps], out=work).sum((0, 1)) for i in range(width)], 1
        )
        if cut is not None:
            taps = cut.taps(inputs)
            dweight += (inputs[taps] * drows).masked_fill(~cut.keep, 0).sum(0).t()
            back = (drows * weight.t().to(dy.dtype)).masked_fill(~cut.keep, 0)
            dinputs.index_put_(taps, back, accumulate=True)
        dwindow, dx = dinputs.split((width - 1, steps), dim=1)
        dwindow = dwindow.transpose(1, 2).to(window.dtype)
        return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(bias.dtype), dwindow, None


def _inputs(x: Tensor, weight: Tensor, window: Tensor) -> Tensor:
    """What the taps read [B, W-1+T, D], in fp32 or wider."""
    full = torch.promote_types(x.dtype, torch.promote_types(weight.dtype, torch.float32))
    return torch.cat((window.transpose(1, 2).to(full), x.to(full)), dim=1)


def _convolve(inputs: Tensor, weight: Tensor, bias: Tensor, cut: _Cut | None) -> Tensor:
    y = _depthwise(inputs, weight, bias)
    if cut is not None:
        read = inputs[cut.taps(inputs)].masked_fill(~cut.keep, 0)  # [M, W, D]
        y[cut.at] = (read * weight.t()).sum(1).add_(bias).to(y.dtype)
    return y


def _depthwise(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, W-1+T, D] -> [B, T, D]."""
    image = inputs.unsqueeze(1).permute(0, 3, 1, 2)
    full = inputs.dtype
    bias = None if bias is None else bias.to(full)
    y = F.conv2d(image, weight.to(full)[:, None, None], bias, groups=len(weight))
    return y.permute(0, 2, 3, 1).squeeze(1)
