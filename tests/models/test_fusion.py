"""Every fusion is a sum of parts, starts where gate_init says, and lets gradient through."""

from __future__ import annotations

import pytest
import torch
from toys import small

from groundthink import build
from groundthink.models.fusion import FUSIONS

C = 16
pytestmark = pytest.mark.tiny


@pytest.fixture(params=FUSIONS)
def fusion(request):
    module = FUSIONS[request.param](C, 0.3)
    module.init_weights()
    return module


@pytest.fixture
def branches() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(2, 5, C, requires_grad=True) for _ in range(2))


def test_the_parts_add_up(fusion, branches):
    torch.nn.init.normal_(next(fusion.parameters()), std=0.5)
    r_part, m_part = fusion.parts(*branches)
    torch.testing.assert_close(fusion(*branches), r_part + m_part)


def test_a_position_sees_only_itself(fusion, branches):
    r, m = branches
    torch.testing.assert_close(fusion(r, m)[:, 2:3], fusion(r[:, 2:3], m[:, 2:3]))


def test_gradient_reaches_both_branches(fusion, branches):
    fusion(*branches).square().sum().backward()
    assert all(x.grad.abs().max() > 0 for x in branches)


@pytest.mark.parametrize("name", [n for n, f in FUSIONS.items() if f.honours_gate_init])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.5, 0.97])
def test_gate_init_is_honoured_exactly(name, share, branches):
    module = FUSIONS[name](C, share)
    module.init_weights()
    r, m = branches
    torch.testing.assert_close(module(r, m), share * r + (1 - share) * m, atol=2e-6, rtol=1e-6)
    if hasattr(module, "gate"):
        assert (torch.sigmoid(module.gate.proj.bias) - share).abs().max() < 1e-6
        assert module.share(r, m).item() == pytest.approx(share, abs=1e-6)


def test_gate_init_by_layer():
    model = build(small("gf", gate_init_layers=(0.2, 0.9)))
    x = torch.randn(1, 3, 32)
    shares = [block.fusion.share(x, x).item() for block in model.blocks]
    assert shares == pytest.approx([0.2, 0.9], abs=1e-6)


def test_a_branch_alone_holds_the_whole_share():
    module = FUSIONS["cp"](C, 0.5)
    module.init_weights()
    x = torch.randn(2, 5, C)
    assert module.share(x, torch.zeros_like(x)).item() == 1
    assert module.share(torch.zeros_like(x), x).item() == 0
