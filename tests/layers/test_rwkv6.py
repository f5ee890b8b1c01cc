from __future__ import annotations

import pytest
import torch

from groundthink.errors import UserError
from groundthink.layers.rwkv6 import RWKV6

pytestmark = pytest.mark.tiny


def made(layer: int = 0, n_layers: int = 1, width: int = 32) -> RWKV6:
    torch.manual_seed(0)
    mixer = RWKV6(width, 8, layer, n_layers)
    mixer.init_weights()
    return mixer


@pytest.mark.parametrize("layer, n_layers", [(0, 1), (0, 4), (2, 4), (3, 4)])
def test_decays_start_from_0_9975_to_0_69(layer, n_layers):
    mixer = made(layer, n_layers)
    w = (-mixer.decay(torch.randn(1, 3, 32)).exp()).exp()
    torch.testing.assert_close(w[..., 0], torch.full((1, 3), 0.99752), atol=1e-5, rtol=0)
    torch.testing.assert_close(w[..., -1], torch.full((1, 3), 0.69220), atol=1e-5, rtol=0)
    assert (w.diff(dim=-1) < 0).all()


@pytest.mark.parametrize("layer, n_layers", [(0, 1), (3, 4)])
def test_the_output_starts_at_zero_and_every_weight_is_finite(layer, n_layers):
    mixer = made(layer, n_layers)
    assert not mixer(torch.randn(2, 5, 32))[0].any()
    assert all(p.isfinite().all() for p in mixer.parameters())


def test_published_initial_values():
    mixer, c = made(1, 3), 32
    d, ramp = torch.arange(c) / c, torch.arange(c) / (c - 1)
    w, k, v, r, g = mixer.time_maa
    torch.testing.assert_close(mixer.time_maa_x, 1 - d ** (2 / 3))
    torch.testing.assert_close(torch.stack((w, k)), (1 - d ** (2 / 3)).expand(2, c))
    torch.testing.assert_close(v, 1 - d ** (2 / 3) - 0.15)
    torch.testing.assert_close(torch.stack((r, g)), (1 - d ** (1 / 3)).expand(2, c))
    zigzag = torch.tensor([0.0, 0.1, -0.1]).repeat(11)[:c]
    torch.testing.assert_close(mixer.time_faaaa.flatten(), 0.5 * (1 - ramp) + zigzag)
    torch.testing.assert_close(mixer.ln_x.weight, torch.full((c,), (2 / 3) ** 0.7))
    for linear, gain in (("receptance", 1), ("value", 1), ("key", 0.1), ("gate", 0.1)):
        weight = getattr(mixer, linear).weight
        torch.testing.assert_close(weight @ weight.t(), gain**2 * torch.eye(c))


def test_the_decay_stays_fp32_under_autocast():
    mixer = made()
    x = torch.randn(1, 4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        w_raw = mixer.decay(x)
    assert w_raw.dtype == torch.float32
    torch.testing.assert_close(w_raw, mixer.decay(x))


def test_a_width_the_heads_do_not_fill_names_the_nearest():
    with pytest.raises(UserError, match=r"100 .* rwkv_head_size 32; the nearest that fits is 96"):
        RWKV6(100, 32, 0, 1)
    with pytest.raises(UserError, match="the nearest that fits is 32"):
        RWKV6(10, 32, 0, 1)
