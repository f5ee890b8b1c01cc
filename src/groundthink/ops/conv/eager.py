"""Convolution and SiLU with a hand-written gradient, for eager code on any device.

The convolution is torch's depthwise one over channels-last images of height 1, many times as fast
on a CPU as over channels-first sequences. All sequences lie in one image, so that nothing is
copied; the few tokens whose taps reach over the start of a sequence or over a reset are computed
again by themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.conv import reference
from groundthink.ops.cuts import once
from groundthink.ops.fused import full_precision

BLOCK = 128
"""Tokens at once in the gradient of the taps: their sums stay in the cache for usual widths."""


def conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_j weight[:, W-1-j] x_{t-j}), and the last W - 1 inputs.

    Compiled code takes the reference: it cannot ask where the resets are, and fuses the taps.
    """
    if torch.compiler.is_compiling():
        return reference.conv_silu(x, weight, bias, window, reset)
    with full_precision(x):
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


def parts(x: Tensor, weight: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Three products: a gradient that is cut from one would first be gathered for it."""
    if torch.compiler.is_compiling():
        return reference.parts(x, weight, sizes)
    return _Parts.apply(x, weight.to(x.dtype), sizes)  # pyright: ignore


def carried(x: Tensor, window: Tensor, reset: Tensor | None) -> Tensor:
    """The window after the last token [B, D, W-1]."""
    past = window.shape[2]
    tail = torch.cat((window.transpose(1, 2).to(x.dtype), x[:, -past:] if past else x[:, :0]), 1)
    tail = tail[:, tail.shape[1] - past :]
    if reset is not None:
        tail = tail.masked_fill(once(reset, ("tail", past), lambda: _before_last(reset, past)), 0)
    return tail.transpose(1, 2).to(window.dtype, copy=True)


def _before_last(reset: Tensor, past: int) -> Tensor:
    """Which of the last `past` inputs the last reset hides [B, past, 1]."""
    count = F.pad(reset, (past, 0)).cumsum(1)[:, reset.shape[1] :, None]
    return count != reset.sum(1)[:, None, None]


class _Cut(NamedTuple):
    """The tokens whose taps reach over a reset: their batch and place, and which taps they keep."""

    at: tuple[Tensor, Tensor]  # [M] each
    keep: Tensor  # bool [M, W, 1]

    @classmethod
    def of(cls, reset: Tensor | None, width: int) -> _Cut | None:
        if reset is None:
            return None
        return once(reset, ("conv", width), lambda: cls._of(reset, width))

    @classmethod
    def _of(cls, reset: Tensor, width: int) -> _Cut | None:
        if not reset.any():
            return None
        count = F.pad(reset, (width - 1, 0)).cumsum(1).unfold(1, width, 1)  # [B, T, W]
        keep = count == count[..., -1:]
        batch, place = (~keep).any(-1).nonzero(as_tuple=True)
        return cls((batch, place), keep[batch, place][..., None])

    def taps(self) -> tuple[Tensor, Tensor]:
        """Where the taps of the tokens lie in [B, T]; those before the first are never kept."""
        batch, place = self.at
        lags = torch.arange(1 - self.keep.shape[1], 1, device=place.device)
        return batch[:, None], (place[:, None] + lags).clamp_(min=0)


class _Parts(torch.autograd.Function):
    """Backward the products add up in one gradient of x, and fill one of the weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, sizes: tuple[int, ...]):
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        return tuple(F.linear(x, part) for part in weight.split(sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        x, weight = ctx.saved_tensors
        flat, dweight = x.flatten(0, -2), torch.empty_like(weight)
        rows = [grad.flatten(0, -2) for grad in grads]
        first, *rest = weight.split(ctx.sizes)
        dx = rows[0] @ first
        for grad, part in zip(rows[1:], rest, strict=True):
            dx.addmm_(grad, part)
        for grad, dpart in zip(rows, dweight.split(ctx.sizes), strict=True):
            wide = grad.shape[1] > flat.shape[1]  # products are faster that are wide, not tall
            dpart.copy_((flat.t() @ grad).t() if wide else grad.t() @ flat)
        return dx.view(x.shape), dweight, None


class _ConvSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, window, reset):
        ctx.cut = _Cut.of(reset, weight.shape[1])
        y = _convolve(*_wide(x, weight, bias, window), cut=ctx.cut)
        ctx.save_for_backward(x, weight, bias, window, y)
        return F.silu(y).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        *given, y = ctx.saved_tensors
        x, weight, _, window = _wide(*given)
        cut, past, head = ctx.cut, weight.shape[1] - 1, _head(x, weight)
        dy = torch.ops.aten.silu_backward(dout.to(y.dtype), y)
        dbias = dy.sum((0, 1))
        if cut is not None:
            dcut = dy[cut.at][:, None]  # [M, 1, D]
            dy[cut.at] = 0
        dhead = dy[:, :head].clone()
        dy[:, :head] = 0

        flipped, dwindow = weight.flip(1), torch.zeros_like(window).mT
        dx = _all_at_once(dy, flipped, None, past)
        dweight = _taps_backward(dy.flatten(0, 1), x.flatten(0, 1), past + 1)
        if head:
            dnear = _few(F.pad(dhead, (0, 0, past, past)), flipped)
            dwindow = dnear[:, :past]
            dx[:, :head] += dnear[:, past:]
            dweight += (_taps(_near(x, window, head), 1, past + 1) * dhead).sum((1, 2)).t()
        if cut is not None:
            taps = cut.taps()
            dweight += (x[taps] * dcut).masked_fill(~cut.keep, 0).sum(0).t()
            dtaps = (dcut * weight.t()).masked_fill(~cut.keep, 0)
            dx.index_put_(taps, dtaps, accumulate=True)
        grads = dx, dweight, dbias, dwindow.mT
        return *(grad.to(of.dtype) for grad, of in zip(grads, given, strict=True)), None


def _wide(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All in one dtype, fp32 or wider; x contiguous."""
    full = torch.promote_types(x.dtype, torch.promote_types(others[0].dtype, torch.float32))
    return x.to(full).contiguous(), *(t.to(full) for t in others)


def _head(x: Tensor, weight: Tensor) -> int:
    """How many tokens of a sequence have taps before its first."""
    return min(x.shape[1], weight.shape[1] - 1)


def _near(x: Tensor, window: Tensor, head: int) -> Tensor:
    """What the first tokens read [B, W-1 + head, D]."""
    return torch.cat((window.transpose(1, 2), x[:, :head]), dim=1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, cut: _Cut | None) -> Tensor:
    y = _all_at_once(x, weight, bias, 0)
    head = _head(x, weight)
    if head:
        torch.add(_few(_near(x, window, head), weight), bias, out=y[:, :head])
    if cut is not None:
        read = x[cut.taps()].masked_fill(~cut.keep, 0)  # [M, W, D]
        y[cut.at] = (read * weight.t()).sum(1).add_(bias)
    return y


def _all_at_once(x: Tensor, weight: Tensor, bias: Tensor | None, first: int) -> Tensor:
    """Convolve [B, T, D] as one sequence with zeros around it, from output `first` on."""
    tokens, past = x.shape[0] * x.shape[1], weight.shape[1] - 1
    image = x.view(1, 1, tokens, -1).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight[:, None, None], bias, padding=(0, past), groups=len(weight))
    return y.permute(0, 2, 3, 1)[0, 0, first : first + tokens].view_as(x)


def _few(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve few tokens [B, P, D] -> [B, P - (W-1), D]."""
    return (_taps(x, 1, weight.shape[1]) * weight.t()[:, None, None]).sum(0)


def _taps(x: Tensor, dim: int, width: int) -> Tensor:
    """What the taps, oldest first, read of x along a dimension: views of it [W, ...]."""
    return x.unfold(dim, width, 1).movedim(-1, 0)


def _taps_backward(dy: Tensor, x: Tensor, width: int) -> Tensor:
    """Gradient of the weight [D, W] from dy and x [tokens, D]; dy is 0 for the first W - 1."""
    if len(x) < width:
        return x.new_zeros(x.shape[1], width)
    total = x.new_zeros(width, BLOCK, x.shape[1])
    blocks = dy[width - 1 :].split(BLOCK), _taps(x, 0, width).split(BLOCK, 1)
    for dy, read in zip(*blocks, strict=True):
        total[:, : len(dy)].addcmul_(dy, read)
    return total.sum(1).t()
