"""RWKV-6 channel mixing: a squared-ReLU MLP on token-shifted inputs behind a sigmoid gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundthink.layers.shift import token_shift


class ChannelMix(nn.Module):
    """sigmoid(W_r x_r) * W_v relu(W_k x_k)^2, where x_k and x_r blend each token with the last one.

    Peng et al. 2024, "Eagle and Finch", section 4.3, with the released RWKV-6 initialisation.

    Args:
        d_model: C, width of the residual stream.
        hidden: width of the key.
        layer: index of the block; deeper blocks look back less at step 0.
        n_layers: number of blocks.
    """

    def __init__(self, d_model: int, hidden: int, layer: int, n_layers: int):
        super().__init__()
        self.depth = layer / n_layers
        self.time_maa_k = nn.Parameter(torch.empty(d_model))
        self.time_maa_r = nn.Parameter(torch.empty(d_model))
        self.key = nn.Linear(d_model, hidden, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(hidden, d_model, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """The output is zero at step 0: receptance and value start at zero."""
        c = self.time_maa_k.shape[0]
        channel = torch.arange(c, device=self.time_maa_k.device) / c
        blend = 1 - channel ** ((1 - self.depth) ** 3)
        self.time_maa_k.copy_(blend)
        self.time_maa_r.copy_(blend)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """shift [B, C]: the last input."""
        return {"shift": self.time_maa_k.new_zeros(batch, self.time_maa_k.shape[0])}

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C] -> y [B, T, C] and the state after the last token."""
        state = state or self.init_state(x.shape[0])
        shifted, last = token_shift(x, state["shift"], reset)
        back = shifted - x
        k = self.key(torch.addcmul(x, back, self.time_maa_k)).relu().square()
        r = self.receptance(torch.addcmul(x, back, self.time_maa_r)).sigmoid()
        return r * self.value(k), {"shift": last}
