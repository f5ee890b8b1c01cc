"""Norms of the residual stream, of heads and of gated outputs, each with what surrounds it."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.dispatch import check_shape
from groundthink.ops.fused import choose
from groundthink.ops.norm import eager, reference


def _kernels():
    from groundthink.ops.norm import launch

    return launch


BACKENDS = {
    "rms_norm": {
        "reference": reference.rms_norm,
        "eager": eager.rms_norm,
        "triton": lambda *args: _kernels().rms_norm(*args),
    },
    "residual_norm": {
        "reference": reference.residual_norm,
        "eager": eager.residual_norm,
        "triton": lambda *args: _kernels().residual_norm(*args),
    },
    "gated_rms_norm": {
        "reference": reference.gated_rms_norm,
        "eager": eager.gated_rms_norm,
        "triton": lambda *args: _kernels().gated_rms_norm(*args),
    },
    "head_norm_gate": {
        "reference": reference.head_norm_gate,
        "eager": eager.head_norm_gate,
        "triton": lambda *args: _kernels().head_norm_gate(*args),
    },
}


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the channels (Zhang and Sennrich 2019, eq. 4).

    Args:
        x: [..., C].
        weight: [C].
        eps: added to the mean square.
        dtype: of the result; that of x if None.
        backend: a name in ``BACKENDS["rms_norm"]``, or ``auto``.

    Returns:
        [..., C].

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    check_shape("rms_norm", "weight", weight, x.shape[-1:])
    run = choose("rms_norm", BACKENDS["rms_norm"], backend, x)
    return run(x, weight, eps, dtype or x.dtype)


def residual_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The residual stream and its `rms_norm` for two readers.

    The gradients that come by the three are added on the way.

    Args:
        x: [..., C].
        weight: [C].
        eps: added to the mean square.
        dtype: of the norm; that of x if None.
        backend: a name in ``BACKENDS["residual_norm"]``, or ``auto``.

    Returns:
        x itself and its norm twice, [..., C] each.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    check_shape("residual_norm", "weight", weight, x.shape[-1:])
    run = choose("residual_norm", BACKENDS["residual_norm"], backend, x)
    return run(x, weight, eps, dtype or x.dtype)


def gated_rms_norm(
    y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, *, backend: str = "auto"
) -> Tensor:
    """``rms_norm(y silu(z))`` in equal groups of channels (Dao and Gu 2024, section 7).

    Args:
        y: [..., D].
        z: its gate before SiLU [..., D]; may be a slice of a wider projection.
        weight: [D].
        groups: divides D; each group is normalised by itself.
        eps: added to the mean square.
        backend: a name in ``BACKENDS["gated_rms_norm"]``, or ``auto``.

    Returns:
        [..., D] in the dtype of y.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    check_shape("gated_rms_norm", "z", z, y.shape)
    check_shape("gated_rms_norm", "weight", weight, y.shape[-1:])
    if y.shape[-1] % groups:
        raise UserError(
            f"gated_rms_norm: {groups} groups do not divide the {y.shape[-1]} channels of y"
        )
    run = choose("gated_rms_norm", BACKENDS["gated_rms_norm"], backend, y)
    return run(y, z, weight, groups, eps)


def head_norm_gate(
    y: Tensor, g: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str = "auto"
) -> Tensor:
    """``(norm(y) weight + bias) silu(g)``: what RWKV-6 does between WKV6 and its output.

    The norm is a GroupNorm with a group a head (Peng et al. 2024, "Eagle and Finch", section 4.2).

    Args:
        y: output of the recurrence [..., H, N].
        g: the gate before SiLU [..., H N].
        weight: [H N].
        bias: [H N].
        eps: added to the variance.
        backend: a name in ``BACKENDS["head_norm_gate"]``, or ``auto``.

    Returns:
        [..., H N] in the dtype of y.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    *lead, heads, size = y.shape
    check_shape("head_norm_gate", "g", g, (*lead, heads * size))
    check_shape("head_norm_gate", "weight", weight, (heads * size,))
    check_shape("head_norm_gate", "bias", bias, (heads * size,))
    run = choose("head_norm_gate", BACKENDS["head_norm_gate"], backend, y)
    return run(y, g, weight, bias, eps)
