from __future__ import annotations

import pytest
import torch

from groundthink.layers.mlp import MLP


@pytest.mark.tiny
def test_the_equation_and_the_empty_state():
    torch.manual_seed(0)
    mlp = MLP(8, 24)
    mlp.init_weights()
    x = torch.randn(2, 3, 8)
    y, state = mlp(x, mlp.init_state(2))
    hidden = x @ mlp.up.weight.t()
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(y, hidden @ mlp.down.weight.t())
    assert state == {}
    assert sum(p.numel() for p in mlp.parameters()) == 2 * 8 * 24
