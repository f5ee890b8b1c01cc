"""The GELU MLP of GPT-2, without biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """d_model -> hidden -> GELU -> d_model (Radford et al. 2019); it carries no state."""

    def __init__(self, d_model: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(d_model, hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def init_weights(self) -> None:
        """Normal with standard deviation 0.02."""
        nn.init.normal_(self.up.weight, std=0.02)
        nn.init.normal_(self.down.weight, std=0.02)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        return {}

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C] -> y [B, T, C] and the empty state; tokens do not meet."""
        return self.down(F.gelu(self.up(x))), {}
