from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groundthink.errors import UserError
from groundthink.layers.norms import GatedRMSNorm, HeadNorm, RMSNorm, make_norm

pytestmark = pytest.mark.tiny


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rms_norm_is_that_of_torch(dtype, scale):
    ours, theirs = RMSNorm(24, 1e-6).to(dtype), nn.RMSNorm(24, 1e-6, dtype=dtype)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
    x = (scale * torch.randn(5, 3, 24)).to(dtype).transpose(0, 1)
    dy = torch.randn(3, 5, 24).to(dtype)
    results = []
    for norm in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        y.backward(dy)
        results.append((y.detach(), leaf.grad, norm.weight.grad))
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {}
    if dtype == torch.float32:
        tolerance = {"rtol": 1e-5, "atol": 1e-5 / max(scale, 1e-3)}
    torch.testing.assert_close(*results, **tolerance)


def test_head_norm_is_group_norm_with_a_group_per_head():
    norm = HeadNorm(24, eps=64e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 8)
    g = torch.randn(2, 5, 24)
    expected = F.group_norm(x.view(10, 24), 3, norm.weight, norm.bias, 64e-5).view(2, 5, 24)
    torch.testing.assert_close(norm(x, g), expected * F.silu(g))


@pytest.mark.parametrize("groups", [1, 3])
def test_gated_norm_normalises_each_group_after_the_gate(groups):
    norm = GatedRMSNorm(12, groups, eps=1e-5)
    nn.init.normal_(norm.weight)
    y, z = torch.randn(2, 2, 5, 12)
    gated = y * z * torch.sigmoid(z)
    expected = torch.cat(
        [g / (g.square().mean(-1, keepdim=True) + 1e-5).sqrt() for g in gated.chunk(groups, -1)], -1
    )
    torch.testing.assert_close(norm(y, z), norm.weight * expected)


def test_layer_norm_has_a_bias_and_its_eps():
    norm = make_norm("layer", 8, 1e-3)
    nn.init.normal_(norm.bias)
    norm.init_weights()
    x = torch.randn(4, 8)
    torch.testing.assert_close(norm(x), F.layer_norm(x, (8,), eps=1e-3))


def test_an_unknown_norm_is_named():
    with pytest.raises(UserError, match="unknown norm 'rmss'; did you mean rms"):
        make_norm("rmss", 8, 1e-5)
