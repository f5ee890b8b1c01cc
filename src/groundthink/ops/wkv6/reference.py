"""WKV6 as published, one token at a time: the oracle for every other backend."""

from __future__ import annotations

import torch
from torch import Tensor


def wkv6_reference(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y_t = r_t (S + u k_t v_t^T);  S <- diag(w_t) S + k_t v_t^T  (Peng et al. 2024, eq. 18-19)."""
    w = log_w.exp()
    out = []
    for t in range(r.shape[1]):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]  # [B, H, K, V]
        out.append(torch.einsum("bhk,bhkv->bhv", r[:, t], state + u[..., None] * kv))
        state = w[:, t, :, :, None] * state + kv
    return torch.stack(out, dim=1), state
