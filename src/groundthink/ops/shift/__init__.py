"""Token shift: what RWKV-6 does to its input before its projections."""

from __future__ import annotations

from torch import Tensor

from groundthink.ops.dispatch import check_shape
from groundthink.ops.fused import choose, full_precision
from groundthink.ops.shift import eager, reference


def _kernels():
    from groundthink.ops.shift import launch

    return launch


BACKENDS = {
    "ddlerp": {
        "reference": reference.ddlerp,
        "triton": lambda *args: _kernels().ddlerp(*args),
    },
    "project": {
        "reference": reference.project,
        "eager": eager.project,
        "triton": lambda *args: _kernels().project(*args),
    },
    "raw_decay": {
        "reference": reference.raw_decay,
        "eager": reference.raw_decay,  # few tensors: autograd loses nothing
        "triton": lambda *args: _kernels().raw_decay(*args),
    },
}


def ddlerp(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Data-dependent blend of every token with the one before it, for w, k, v, r and g.

    ``x_q = x + (shift(x) - x) (maa_q + tanh((x + (shift(x) - x) maa_x) w1)_q w2_q)`` where
    shift(x) is the previous token: Peng et al. 2024, "Eagle and Finch", eq. 14-15.

    Args:
        x: input [B, T, C], T >= 1.
        last: input of the token before the first [B, C].
        maa_x: [C].
        w1: [C, 5 R], R the rank of the data-dependent part.
        w2: [5, R, C].
        maa: of w, k, v, r and g [5, C].
        reset: bool [B, T]; where true the token has no predecessor and sees zeros.
        backend: a name in ``BACKENDS["ddlerp"]``, or ``auto``.

    Returns:
        x_w [B, T, C]; x_k, x_v, x_r and x_g as one tensor [4, B, T, C], ready for one batched
        product with the four projections; both in the dtype of x. And the last input [B, C] in
        the dtype of `last`: a copy, so that a carried state does not keep the whole of x alive.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("ddlerp", x, last, maa_x, w1, w2, maa, reset)
    run = choose("ddlerp", BACKENDS["ddlerp"], backend, x)
    with full_precision(x):
        return run(x, last, maa_x, w1, w2, maa, reset)


def project(
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    reset: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`ddlerp`, and the projections of four of its blends: all that RWKV-6 does before WKV6.

    Args:
        x: input [B, T, C], T >= 1.
        last: input of the token before the first [B, C].
        maa_x: [C].
        w1: [C, 5 R].
        w2: [5, R, C].
        maa: of w, k, v, r and g [5, C].
        weights: of the projections of k, v, r and g, [D, C] each as in nn.Linear.
        reset: bool [B, T]; where true the token has no predecessor and sees zeros.
        backend: a name in ``BACKENDS["project"]``, or ``auto``.

    Returns:
        x_w [B, T, C]; k, v, r and the gate before SiLU [B, T, D]; all in the dtype of x. And the
        last input [B, C] in the dtype of `last`, a copy.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("project", x, last, maa_x, w1, w2, maa, reset)
    for name, weight in zip("kvrg", weights, strict=True):
        check_shape("project", f"weight of {name}", weight, (weights[0].shape[0], x.shape[2]))
    run = choose("project", BACKENDS["project"], backend, x)
    with full_precision(x):
        return run(x, last, maa_x, w1, w2, maa, weights, reset)


def raw_decay(x: Tensor, bias: Tensor, w1: Tensor, w2: Tensor, *, backend: str = "auto") -> Tensor:
    """``bias + tanh(x w1) w2``: the decay of RWKV-6 before ``w = exp(-exp(.))``.

    Peng et al. 2024, "Eagle and Finch", eq. 16.

    Args:
        x: the blend x_w [B, T, C].
        bias: [D].
        w1: [C, R], R the rank of the data-dependent part.
        w2: [R, D].
        backend: a name in ``BACKENDS["raw_decay"]``, or ``auto``.

    Returns:
        [B, T, D] in fp32 (or fp64): w lies close to 1.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    rank = w1.shape[-1]
    check_shape("raw_decay", "w1", w1, (x.shape[-1], rank))
    check_shape("raw_decay", "w2", w2, (rank, w2.shape[-1]))
    check_shape("raw_decay", "bias", bias, w2.shape[1:])
    run = choose("raw_decay", BACKENDS["raw_decay"], backend, x)
    with full_precision(x):
        return run(x, bias, w1, w2)


def _check(
    op: str,
    x: Tensor,
    last: Tensor,
    maa_x: Tensor,
    w1: Tensor,
    w2: Tensor,
    maa: Tensor,
    reset: Tensor | None,
) -> None:
    batch, steps, channels = x.shape
    rank = w2.shape[1]
    for name, tensor, shape in (
        ("last", last, (batch, channels)),
        ("maa_x", maa_x, (channels,)),
        ("w1", w1, (channels, 5 * rank)),
        ("w2", w2, (5, rank, channels)),
        ("maa", maa, (5, channels)),
    ):
        check_shape(op, name, tensor, shape)
    if reset is not None:
        check_shape(op, "reset", reset, (batch, steps))
