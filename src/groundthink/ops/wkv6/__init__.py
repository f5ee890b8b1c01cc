"""WKV6, the recurrence of RWKV-6: a matrix state per head with data-dependent decay."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.ops.dispatch import check_shape, pick
from groundthink.ops.wkv6.chunked import wkv6_chunked
from groundthink.ops.wkv6.reference import wkv6_reference

BACKENDS = {"reference": wkv6_reference, "chunked": wkv6_chunked}


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Multi-head WKV6: ``y_t = r_t (S + u k_t v_t^T)``, then ``S <- diag(w_t) S + k_t v_t^T``.

    Peng et al. 2024, "Eagle and Finch", section 4.2. There is no 1/sqrt(K) scale.

    Args:
        r: receptance [B, T, H, K].
        k: key [B, T, H, K].
        v: value [B, T, H, V].
        log_w: natural log of the decay, <= 0, [B, T, H, K].
        u: bonus for the current token [H, K].
        state: S before the first token [B, H, K, V]; zeros if None. fp32 (fp64 for fp64 inputs).
        reset: bool [B, T]; where true the state is zeroed before that token.
        backend: a name in ``BACKENDS``, or ``auto``.

    Returns:
        y [B, T, H, V] in the dtype of v, and the state after the last token in fp32 (or fp64).
        Gradients flow to every tensor input and through the returned state.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    b, t, h, kdim = r.shape
    vdim = v.shape[-1]
    for name, tensor, shape in (
        ("k", k, (b, t, h, kdim)),
        ("v", v, (b, t, h, vdim)),
        ("log_w", log_w, (b, t, h, kdim)),
        ("u", u, (h, kdim)),
    ):
        check_shape("wkv6", name, tensor, shape)
    full = torch.promote_types(v.dtype, torch.float32)
    if state is None:
        state = v.new_zeros(b, h, kdim, vdim, dtype=full)
    check_shape("wkv6", "state", state, (b, h, kdim, vdim))
    if reset is not None:
        check_shape("wkv6", "reset", reset, (b, t))
    run = pick("wkv6", BACKENDS, backend, v.device)
    with torch.autocast(r.device.type, enabled=False):
        y, state = run(
            r.to(full), k.to(full), v.to(full), log_w.to(full), u.to(full), state.to(full), reset
        )
    return y.to(v.dtype), state
