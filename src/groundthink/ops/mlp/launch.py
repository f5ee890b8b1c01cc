"""The GELU MLP on a GPU: how the kernels in `triton` are launched, and the gradients."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from groundthink.ops.fused import device_of
from groundthink.ops.mlp.triton import _backward, _forward
from groundthink.ops.outer.launch import outer
from groundthink.ops.shares import total

FORWARD = {"ROWS": 64, "UNITS": 64, "STAGES": 2, "num_warps": 4}
BACKWARD = {"ROWS": 64, "UNITS": 32, "STAGES": 3, "num_warps": 4}
"""Tokens and hidden units of a tile, tiles of weights in flight, warps."""


class _AddMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, norm: Tensor, up: Tensor, down: Tensor, eps: float, dtype):
        ctx.dtype = up.dtype
        up, down = (weight.to(dtype).contiguous() for weight in (up, down))
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ctx.save_for_backward(x, norm, up, down)
        ctx.eps, size = eps, x.shape[-1]
        n = x.numel() // size
        with device_of(x):
            _forward[(triton.cdiv(n, FORWARD["ROWS"]),)](
                x, norm, up, down, out, n, eps,
                SIZE=size, HIDDEN=len(up), PAD=max(16, triton.next_power_of_2(size)), **FORWARD,
            )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        x, norm, up, down = ctx.saved_tensors
        (hidden, size), dout = up.shape, dout.contiguous()
        n = x.numel() // size
        some = triton.cdiv(n, BACKWARD["ROWS"])
        dx = torch.empty_like(x)
        h, dy = (up.new_empty(n, size) for _ in range(2))
        units, dunits = (up.new_empty(n, hidden) for _ in range(2))
        shares = torch.empty(some, size, dtype=torch.float32, device=x.device)
        with device_of(x):
            _backward[(some,)](
                x, norm, up, down, dout, dx, h, dy, units, dunits, shares, n, ctx.eps,
                SIZE=size, HIDDEN=hidden, PAD=max(16, triton.next_power_of_2(size)), **BACKWARD,
            )  # fmt: skip
        dup, ddown = outer([(dunits, h), (dy, units)], ctx.dtype)
        return dx, total(shares).to(norm.dtype), dup, ddown, None, None


def add_mlp(
    x: Tensor, norm: Tensor, up: Tensor, down: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """`groundthink.ops.mlp.add_mlp`."""
    return _AddMLP.apply(x, norm, up, down, eps, dtype)  # pyright: ignore
