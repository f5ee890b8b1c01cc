"""Linear maps without bias inside a block."""

from __future__ import annotations

from torch import Tensor, nn

from groundthink.layers.norms import product_dtype
from groundthink.ops.linear import linear


class Linear(nn.Linear):
    """`nn.Linear` without bias whose gradient sums many tokens into a small matrix quickly."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.to(product_dtype(x)), self.weight)
