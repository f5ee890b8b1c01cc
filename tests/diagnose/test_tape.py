"""The tape sees what modules compute, changes nothing, and leaves nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import randomized, small

from groundthink import build, tape
from groundthink.errors import UserError

pytestmark = pytest.mark.tiny


class Toy(nn.Module):
    """Two blocks of a branch and a gate."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"branch": nn.Linear(3, 3), "gate": nn.Sigmoid()}) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x + block["gate"](block["branch"](x))
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Toy()


def test_it_records_inputs_and_output_of_every_call(model):
    x = torch.randn(2, 3)
    with tape(model, "blocks.*.branch") as t:
        model(x)
        model(2 * x)
    assert list(t) == ["blocks.0.branch", "blocks.1.branch"]
    first, second = t["blocks.0.branch"]
    assert torch.equal(first.inputs[0], x)
    assert torch.equal(first.output, model.blocks[0]["branch"](x))
    assert torch.equal(second.inputs[0], 2 * x)


def test_recorded_tensors_are_detached_unless_the_graph_is_asked_for(model):
    x = torch.randn(2, 3)
    with tape(model, "blocks.1.gate") as t:
        model(x)
    assert not t["blocks.1.gate"][0].output.requires_grad
    with tape(model, "blocks.1.gate", grad=True) as t:
        loss = model(x).sum()
    (grad,) = torch.autograd.grad(loss, t["blocks.1.gate"][0].output)
    assert torch.equal(grad, torch.ones(2, 3))


def test_a_wildcard_stands_for_one_part_of_the_name(model):
    with tape(model, "blocks.*") as t:
        pass
    assert list(t) == ["blocks.0", "blocks.1"]
    with tape(model, "blocks.[1-9].*", "blocks.0.g*") as t:
        pass
    assert list(t) == ["blocks.0.gate", "blocks.1.branch", "blocks.1.gate"]


def test_only_the_newest_calls_are_kept(model):
    with tape(model, "blocks.0.branch", keep=1) as t:
        for i in range(3):
            model(torch.full((1, 3), float(i)))
    (call,) = t["blocks.0.branch"]
    assert call.inputs[0][0, 0] == 2


def test_hooks_are_gone_after_an_error_too(model):
    with pytest.raises(RuntimeError), tape(model, "blocks.*.branch"):
        model(torch.randn(2, 4))
    assert not any(module._forward_hooks for module in model.modules())


def test_outputs_are_unchanged(model):
    x = torch.randn(2, 3)
    before = model(x)
    with tape(model, "blocks.*.*"):
        assert torch.equal(model(x), before)


def test_an_unknown_name_is_one_line_with_near_names(model):
    near = r"'blocks.\*.brunch'; did you mean blocks.0.branch"
    with pytest.raises(UserError, match=near), tape(model, "blocks.*.brunch"):
        pass
    with pytest.raises(UserError, match="the model has blocks"), tape(model, "zzz"):
        pass


def test_a_mixer_s_state_is_what_it_returned_on_each_call():
    model, tokens = randomized(build(small("gf"))), torch.arange(24).view(2, 12)
    state, ends = None, []
    with tape(model, "blocks.1.mamba2.state", "blocks.0.state", "state") as t:
        for piece in tokens.split(5, 1):
            _, state = model(piece, state)
            ends.append(state)
    assert list(t) == ["state", "blocks.0.state", "blocks.1.mamba2.state"]
    for call, end in zip(t["blocks.1.mamba2.state"], ends, strict=True):
        assert call.output.keys() == {"ssm", "conv"}
        assert torch.equal(call.output["ssm"], end.layers[1]["mamba2"]["ssm"])
    assert torch.equal(
        t["blocks.0.state"][0].output["rwkv6"]["wkv"], ends[0].part("rwkv6", "wkv")[0]
    )
    assert not any(x.requires_grad for _, x in t["state"][0].output.items())
    with (
        pytest.raises(UserError, match="did you mean blocks.0.mamba2.state"),
        tape(model, "blocks.0.mamba.state"),
    ):
        pass


@pytest.mark.parametrize("variant", ["gf", "hgf"])
def test_the_gate_is_heard_though_the_fusion_runs_in_one_pass(variant):
    model, tokens = randomized(build(small(variant))), torch.arange(24).view(2, 12)
    before, named = model(tokens, return_states=True)
    with tape(model, "blocks.*.fusion.gate") as t:
        during = model(tokens)[0]
    assert list(t) == ["blocks.0.fusion.gate", "blocks.1.fusion.gate"]
    shares = torch.stack([call.output.mean() for (call,) in t.values()])
    torch.testing.assert_close(shares, named["gate"])
    torch.testing.assert_close(during, before)
    assert torch.equal(model(tokens)[0], before)
