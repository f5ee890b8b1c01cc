from __future__ import annotations

import pytest
import torch

from groundthink.layers.channel_mix import ChannelMix

pytestmark = pytest.mark.tiny


def test_published_initial_values():
    mix = ChannelMix(16, 64, 1, 2)
    mix.init_weights()
    expected = 1 - (torch.arange(16) / 16) ** (1 / 8)
    torch.testing.assert_close(mix.time_maa_k, expected)
    torch.testing.assert_close(mix.time_maa_r, expected)
    torch.testing.assert_close(mix.key.weight.t() @ mix.key.weight, torch.eye(16))
    assert not mix(torch.randn(2, 3, 16))[0].any()


def test_the_equation():
    torch.manual_seed(0)
    mix = ChannelMix(4, 8, 0, 1).double()
    for p in mix.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    y, state = mix(x)
    for t, (now, last) in enumerate(zip(x[0], [torch.zeros(4), *x[0]], strict=False)):
        x_k = (1 - mix.time_maa_k) * now + mix.time_maa_k * last
        x_r = (1 - mix.time_maa_r) * now + mix.time_maa_r * last
        value = mix.value.weight @ (mix.key.weight @ x_k).clamp(min=0) ** 2
        torch.testing.assert_close(y[0, t], torch.sigmoid(mix.receptance.weight @ x_r) * value)
    torch.testing.assert_close(state["shift"], x[:, -1])
