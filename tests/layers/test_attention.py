from __future__ import annotations

import pytest
import torch

from groundthink.errors import UserError
from groundthink.layers.attention import Attention

pytestmark = pytest.mark.tiny


def test_the_equation_within_documents():
    torch.manual_seed(0)
    layer = Attention(8, 2).double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, [2, 6]] = True
    q, k, v = (part.view(9, 2, 4) for part in layer.qkv(x)[0].chunk(3, -1))
    expected = torch.empty(9, 8, dtype=torch.float64)
    for t, start in enumerate([0, 0, 2, 2, 2, 2, 6, 6, 6]):
        for h in range(2):
            scores = k[start : t + 1, h] @ q[t, h] / 4**0.5
            expected[t, 4 * h : 4 * h + 4] = scores.softmax(0) @ v[start : t + 1, h]
    y, state = layer(x, None, reset)
    torch.testing.assert_close(y[0], layer.output(expected))
    assert state["start"].tolist() == [6]
    assert state["k"].shape == (1, 2, 9, 4)


def test_a_width_the_heads_do_not_divide_names_the_nearest():
    with pytest.raises(UserError, match=r"10 .* attention_heads 4; the nearest that fits is 8"):
        Attention(10, 4)
