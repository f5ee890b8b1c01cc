"""The GELU MLP of GPT-2, without biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.layers.norms import RMSNorm, listened, product_dtype
from groundthink.ops.mlp import add_mlp, one_pass


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

    def joins(self, norm: nn.Module, x: Tensor) -> Tensor | None:
        """x + self(norm(x)) in one pass, if there is one here and nobody listens to a part."""
        dtype = product_dtype(x)
        if not (one_pass(x, dtype) and isinstance(norm, RMSNorm)):
            return None
        if listened(self) or listened(norm):
            return None
        return add_mlp(x, norm.weight, self.up.weight, self.down.weight, norm.eps, dtype=dtype)
