"""WKV6, the recurrence of RWKV-6: a matrix state per head with data-dependent decay."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.dispatch import Op, check_shape
from groundthink.ops.fused import choose, full_precision
from groundthink.ops.wkv6.chunked import wkv6_chunked
from groundthink.ops.wkv6.reference import wkv6_reference


def _in_full(op: Op) -> Op:
    """`op` on log decays and inputs in fp32 at least, from zeros where there is no state."""

    def run(r, k, v, w, u, state, reset, raw):
        full = torch.promote_types(v.dtype, torch.float32)
        if state is None:
            state = v.new_zeros(*r.shape[:1], *r.shape[2:], v.shape[-1])
        w = _LogDecay.apply(w.to(full)) if raw else w
        inputs = (x.to(full) for x in (r, k, v, w, u, state))
        with full_precision(r):
            y, state = op(*inputs, reset)
        return y.to(v.dtype), state

    return run


class _LogDecay(torch.autograd.Function):
    """-exp(w_raw). It keeps its result alone, which the recurrence keeps anyway."""

    @staticmethod
    def forward(ctx, w_raw: Tensor) -> Tensor:
        log_w = w_raw.exp().neg_()
        ctx.save_for_backward(log_w)
        return log_w

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


def _triton(*args):
    from groundthink.ops.wkv6.launch import wkv6_triton

    return wkv6_triton(*args)


BACKENDS = {
    "reference": _in_full(wkv6_reference),
    "chunked": _in_full(wkv6_chunked),
    "triton": _triton,
}
LARGEST = 128
"""Head size that the Triton form takes."""


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor | None,
    u: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    w_raw: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Multi-head WKV6: ``y_t = r_t (S + u k_t v_t^T)``, then ``S <- diag(w_t) S + k_t v_t^T``.

    Peng et al. 2024, "Eagle and Finch", section 4.2. There is no 1/sqrt(K) scale.

    Args:
        r: receptance [B, T, H, K].
        k: key [B, T, H, K].
        v: value [B, T, H, V].
        log_w: natural log of the decay, <= 0, [B, T, H, K]; None where `w_raw` is given.
        u: bonus for the current token [H, K].
        state: S before the first token [B, H, K, V]; zeros if None. fp32 (fp64 for fp64 inputs).
        reset: bool [B, T]; where true the state is zeroed before that token.
        w_raw: the decay before its two exponentials, log w = -exp(w_raw), [B, T, H, K].
        backend: a name in ``BACKENDS``, or ``auto``.

    Returns:
        y [B, T, H, V] in the dtype of v, and the state after the last token in fp32 (or fp64).
        Gradients flow to every tensor input and through the returned state.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    b, t, h, kdim = r.shape
    vdim = v.shape[-1]
    if (log_w is None) == (w_raw is None):
        raise UserError("wkv6: give the decay either as log_w or as w_raw, and None for the other")
    w = w_raw if log_w is None else log_w
    for name, tensor, shape in (
        ("k", k, (b, t, h, kdim)),
        ("v", v, (b, t, h, vdim)),
        ("log_w", log_w, (b, t, h, kdim)),
        ("w_raw", w_raw, (b, t, h, kdim)),
        ("u", u, (h, kdim)),
        ("state", state, (b, h, kdim, vdim)),
        ("reset", reset, (b, t)),
    ):
        if tensor is not None:
            check_shape("wkv6", name, tensor, shape)
    size = max(kdim, vdim)
    limit = f"takes heads up to {LARGEST}, not {size}" if size > LARGEST else ""
    run = choose("wkv6", BACKENDS, backend, v, limit)
    return run(r, k, v, w, u, state, reset, log_w is None)
