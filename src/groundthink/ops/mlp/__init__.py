"""The GELU MLP of a narrow model with the norm before it and the residual stream around it."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops.dispatch import check_shape, triton_obstacle
from groundthink.ops.fused import choose, full_precision, traced
from groundthink.ops.mlp import reference

WIDEST = 128
"""Channels that a program of the Triton kernels holds."""
HALF = (torch.bfloat16, torch.float16)


def _triton(*args):
    from groundthink.ops.mlp import launch

    return launch.add_mlp(*args)


BACKENDS = {"reference": reference.add_mlp, "triton": _triton}


def one_pass(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernels are the way to go for x with products in `dtype`."""
    fits = x.shape[-1] <= WIDEST and dtype in HALF and x.dtype != torch.float64
    return fits and x.is_cuda and not triton_obstacle(x.device) and not traced((x,))


def add_mlp(
    x: Tensor,
    norm: Tensor,
    up: Tensor,
    down: Tensor,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``x + down gelu(up rms_norm(x))`` with the GELU of Hendrycks and Gimpel 2016, eq. 2.

    Args:
        x: residual stream [..., C].
        norm: weight of the norm [C].
        up: [D, C].
        down: [C, D].
        eps: added to the mean square of the norm.
        dtype: of the operands of the products; that of x if None.
        backend: a name in ``BACKENDS``, or ``auto``; the Triton form takes up to `WIDEST` channels
            and half precision.

    Returns:
        [..., C] in the dtype of x.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    size, hidden = x.shape[-1], up.shape[0]
    check_shape("add_mlp", "norm", norm, (size,))
    check_shape("add_mlp", "up", up, (hidden, size))
    check_shape("add_mlp", "down", down, (size, hidden))
    dtype = dtype or x.dtype
    limit = "" if dtype in HALF else "takes products in half precision alone"
    if size > WIDEST:
        limit = f"takes up to {WIDEST} channels, not {size}"
    run = choose("add_mlp", BACKENDS, backend, x, limit)
    with full_precision(x):
        return run(x, norm, up, down, eps, dtype)
