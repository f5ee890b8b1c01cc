"""SSD, the recurrence of Mamba-2: a matrix state per head with a scalar decay."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.dispatch import Op, check_shape
from groundthink.ops.fused import choose, full_precision
from groundthink.ops.ssd.chunked import ssd_chunked
from groundthink.ops.ssd.reference import ssd_reference


def _in_full(op: Op) -> Op:
    """`op` on inputs in fp32 at least, from a state of zeros where there is none."""

    def run(x, dt, A, B, C, D, state, reset):
        full = torch.promote_types(x.dtype, torch.float32)
        if state is None:
            state = x.new_zeros(*x.shape[:1], *x.shape[2:], B.shape[-1])
        D = None if D is None else D.to(full)
        x_full, *inputs, state = (t.to(full) for t in (x, dt, A, B, C, state))
        with full_precision(x):
            y, state = op(x_full, *inputs, D, state, reset)
        return y.to(x.dtype), state

    return run


def _triton(*args):
    from groundthink.ops.ssd.launch import ssd_triton

    return ssd_triton(*args)


BACKENDS = {
    "reference": _in_full(ssd_reference),
    "chunked": _in_full(ssd_chunked),
    "triton": _triton,
}
LARGEST = 128
"""Head and state size that the Triton form takes."""


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """State-space duality: ``h <- exp(dt_t A) h + dt_t x_t B_t^T``, then ``y_t = h C_t + D x_t``.

    Dao and Gu 2024, "Transformers are SSMs". Head h reads group h // (H / G) of B and C.

    Args:
        x: input [B, T, H, P].
        dt: step size after softplus [B, T, H].
        A: negative decay rate [H].
        B: input projection [B, T, G, N].
        C: output projection [B, T, G, N].
        D: skip weight [H], or None.
        state: h before the first token [B, H, P, N]; zeros if None. fp32 (fp64 for fp64 inputs).
        reset: bool [B, T]; where true the state is zeroed before that token.
        backend: a name in ``BACKENDS``, or ``auto``.

    Returns:
        y [B, T, H, P] in the dtype of x, and the state after the last token in fp32 (or fp64).
        Gradients flow to every tensor input and through the returned state.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    b, t, h, p = x.shape
    g, n = B.shape[-2:]
    if h % g:
        raise UserError(f"ssd: {h} heads cannot share {g} groups; the groups must divide the heads")
    for name, tensor, shape in (
        ("dt", dt, (b, t, h)),
        ("A", A, (h,)),
        ("B", B, (b, t, g, n)),
        ("C", C, (b, t, g, n)),
    ):
        check_shape("ssd", name, tensor, shape)
    for name, tensor, shape in (("D", D, (h,)), ("state", state, (b, h, p, n))):
        if tensor is not None:
            check_shape("ssd", name, tensor, shape)
    if reset is not None:
        check_shape("ssd", "reset", reset, (b, t))
    size = max(p, n)
    limit = f"takes head and state sizes up to {LARGEST}, not {size}" if size > LARGEST else ""
    return choose("ssd", BACKENDS, backend, x, limit)(x, dt, A, B, C, D, state, reset)
