"""Causal multi-head attention; its state is the keys and values so far."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.errors import UserError


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over the tokens since the last reset (Vaswani et al. 2017, eq. 1).

    It knows no positions and has no biases. The state grows by a key and a value a token.

    Args:
        d_model: C, a multiple of heads.
        heads: H.

    Raises:
        UserError: the heads do not divide d_model.
    """

    def __init__(self, d_model: int, heads: int):
        super().__init__()
        if d_model % heads:
            near = max(1, round(d_model / heads)) * heads
            raise UserError(
                f"d_model {d_model} is not a multiple of attention_heads {heads}; "
                f"the nearest that fits is {near}"
            )
        self.heads = (heads, d_model // heads)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def init_weights(self) -> None:
        """Normal with standard deviation 0.02, as GPT-2."""
        nn.init.normal_(self.qkv.weight, std=0.02)
        nn.init.normal_(self.output.weight, std=0.02)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """k and v [B, H, S, D] with S = 0, and start [B]: the first key after the last reset."""
        empty = self.qkv.weight.new_zeros(batch, self.heads[0], 0, self.heads[1])
        start = torch.zeros(batch, dtype=torch.int64, device=empty.device)
        return {"k": empty, "v": empty, "start": start}

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C] -> y [B, T, C] and the state after the last token."""
        state = state or self.init_state(x.shape[0])
        past = state["k"].shape[2]
        q, k, v = self.qkv(x).unflatten(-1, (3, *self.heads)).permute(2, 0, 3, 1, 4).unbind(0)
        k = torch.cat((state["k"].to(k.dtype), k), dim=2)
        v = torch.cat((state["v"].to(v.dtype), v), dim=2)
        start = state["start"][:, None]
        if past == 0 and reset is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            index = torch.arange(k.shape[2], device=x.device)
            position = index[past:]
            if reset is not None:
                start = torch.maximum(start, torch.where(reset, position, 0)).cummax(1).values
            seen = (index <= position[:, None]) & (index >= start[..., None])
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        new = {"k": k, "v": v, "start": start[:, -1]}
        return self.output(y.transpose(1, 2).flatten(-2)), new
