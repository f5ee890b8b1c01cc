"""SSD as published, one token at a time: the oracle for every other backend."""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """h <- exp(dt A) h + dt x B^T;  y = h C + D x  (Dao and Gu 2024, eq. 1, one A a head)."""
    heads_per_group = x.shape[2] // B.shape[2]
    B = B.repeat_interleave(heads_per_group, dim=2)  # [B, T, H, N]
    C = C.repeat_interleave(heads_per_group, dim=2)
    out = []
    for t in range(x.shape[1]):
        if reset is not None:
            state = state.masked_fill(reset[:, t, None, None, None], 0)
        decay = (dt[:, t] * A).exp()[..., None, None]
        write = torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        state = decay * state + write
        out.append(torch.einsum("bhpn,bhn->bhp", state, C[:, t]))
    y = torch.stack(out, dim=1)
    return (y if D is None else y + D[:, None] * x), state
