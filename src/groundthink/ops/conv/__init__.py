"""What Mamba-2 does between its input projection and SSD."""

from __future__ import annotations

from torch import Tensor

from groundthink.ops.conv import eager, reference
from groundthink.ops.dispatch import check_shape
from groundthink.ops.fused import choose

WIDEST = 4
"""Taps that the Triton kernels take."""


def _kernels():
    from groundthink.ops.conv import launch

    return launch


BACKENDS = {
    "conv_silu": {
        "reference": reference.conv_silu,
        "eager": eager.conv_silu,
        "triton": lambda *args: _kernels().conv_silu(*args),
    },
    "conv_silu_dt": {
        "reference": reference.conv_silu_dt,
        "eager": eager.conv_silu_dt,
        "triton": lambda *args: _kernels().conv_silu_dt(*args),
    },
    "parts": {
        "reference": reference.parts,
        "eager": eager.parts,
        "triton": lambda *args: _kernels().parts(*args),
    },
}


def parts(
    x: Tensor, weight: Tensor, sizes: tuple[int, int, int], *, backend: str = "auto"
) -> tuple[Tensor, ...]:
    """``x weight^T`` in three parts: the gate, what is convolved, and the step sizes.

    Args:
        x: [B, T, C].
        weight: as in nn.Linear [D, C].
        sizes: widths of the parts; they add up to D.
        backend: a name in ``BACKENDS["parts"]``, or ``auto``.

    Returns:
        [B, T, size] each; they may be slices of one tensor.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    check_shape("parts", "weight", weight, (sum(sizes), x.shape[-1]))
    return choose("parts", BACKENDS["parts"], backend, x)(x, weight, sizes)


def conv_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Tensor,
    reset: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution and SiLU: ``silu(bias + sum_j weight[:, W-1-j] x_{t-j})``.

    Dao and Gu 2024, "Transformers are SSMs", section 7. A tap older than the last reset is zero.

    Args:
        x: [B, T, D], T >= 1; may be a slice of a wider projection.
        weight: taps, oldest first, [D, W].
        bias: [D].
        window: the W - 1 inputs before the first token, oldest first, [B, D, W-1].
        reset: bool [B, T]; where true no earlier input is seen by that token or later ones.
        backend: a name in ``BACKENDS["conv_silu"]``, or ``auto``.

    Returns:
        [B, T, D] in the dtype of x, and the window after the last token in the dtype of `window`.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("conv_silu", x, weight, bias, window, reset)
    run = _choose("conv_silu", backend, x, weight)
    return run(x, weight, bias, window, reset)


def conv_silu_dt(
    x: Tensor,
    dt: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor,
    window: Tensor,
    reset: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_silu`, and in the same pass the step sizes ``softplus(dt + dt_bias)`` of SSD.

    Args:
        x: [B, T, D], T >= 1; may be a slice of a wider projection.
        dt: step size before its bias [B, T, H]; may be a slice of the same projection.
        weight: taps, oldest first, [D, W].
        bias: [D].
        dt_bias: [H].
        window: the W - 1 inputs before the first token, oldest first, [B, D, W-1].
        reset: bool [B, T]; where true no earlier input is seen by that token or later ones.
        backend: a name in ``BACKENDS["conv_silu_dt"]``, or ``auto``.

    Returns:
        [B, T, D] in the dtype of x; the step sizes [B, T, H] in fp32 (or fp64); and the window
        after the last token in the dtype of `window`.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("conv_silu_dt", x, weight, bias, window, reset)
    check_shape("conv_silu_dt", "dt", dt, (*x.shape[:2], dt.shape[-1]))
    check_shape("conv_silu_dt", "dt_bias", dt_bias, dt.shape[-1:])
    run = _choose("conv_silu_dt", backend, x, weight)
    return run(x, dt, weight, bias, dt_bias, window, reset)


def _check(
    op: str, x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, reset: Tensor | None
) -> None:
    batch, steps, channels = x.shape
    width = weight.shape[-1]
    check_shape(op, "weight", weight, (channels, width))
    check_shape(op, "bias", bias, (channels,))
    check_shape(op, "window", window, (batch, channels, width - 1))
    if reset is not None:
        check_shape(op, "reset", reset, (batch, steps))


def _choose(op: str, backend: str, x: Tensor, weight: Tensor):
    width = weight.shape[1]
    limit = f"takes up to {WIDEST} taps, not {width}" if width > WIDEST else ""
    return choose(op, BACKENDS[op], backend, x, limit)
