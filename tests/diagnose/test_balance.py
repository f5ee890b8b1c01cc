"""The balance observer reports what the model did, and changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from diagnose.subjects import text
from toys import randomized, small

from groundthink.diagnose.balance import Balance
from groundthink.diagnose.components import grad_rms, ratio
from groundthink.models.build import build
from groundthink.models.components import branch

TOKENS = text(1, 2, 24)[0]


def step(model, observer=None, calls: int = 1) -> list:
    """One forward and backward pass, observed; the records."""
    model.zero_grad()
    if observer:
        observer.start(model)
    for _ in range(calls):
        logits, _ = model(TOKENS.tokens)
        logits.float().logsumexp(-1).mean().backward()
    return observer.finish(model) if observer else []


def observed(model) -> dict:
    ((kind, fields),) = step(model, Balance(10))
    assert kind == "balance"
    return fields


def test_gradients_are_root_mean_squares_over_each_component():
    model = randomized(build(small("hy")))
    fields = observed(model)
    for part in ("rwkv6", "mamba2"):
        grads = [p.grad.flatten() for b in model.blocks for p in getattr(b, part).parameters()]
        expected = torch.cat(grads).square().mean().sqrt().item()
        assert fields["grad_rms"][part] == pytest.approx(expected, rel=1e-5)
    assert fields["grad_ratio"] == fields["grad_rms"]["rwkv6"] / fields["grad_rms"]["mamba2"]


def test_norms_and_gains_of_a_branch_are_not_its_parameters():
    assert branch("blocks.3.rwkv6.key.weight") == "rwkv6"
    assert branch("blocks.3.mamba2.A_log") == "mamba2"
    for name in ("blocks.0.branch_norm.rwkv6.weight", "blocks.0.fusion.mamba_gain", "embed.weight"):
        assert branch(name) == "other"


@pytest.mark.parametrize(("variant", "gate"), [("gf-mh", 0.3), ("gf-xr", 0.97), ("hgf-rh", 0.7)])
def test_the_gate_of_a_fresh_model_is_its_gate_init(variant, gate):
    fields = observed(build(small(variant)))
    assert fields["gate"] == pytest.approx([gate, gate], abs=1e-6)
    assert fields["share"] == pytest.approx([gate, gate], abs=0.05), "branch norms are equal"


def test_the_share_is_of_what_is_added():
    model = randomized(build(small("hy")))
    model.blocks[1].fusion.mamba_gain.data.zero_()
    fields = observed(model)
    assert fields["share"][1] == 1
    assert 0 < fields["share"][0] < 1
    assert fields["gate"] == fields["share"], "without a gate the share stands for it"


def test_branch_rms_is_of_the_raw_output_of_each_layer():
    model = randomized(build(small("gf")))
    branches = (model.blocks[0].rwkv6, model.blocks[0].mamba2)
    with torch.no_grad():
        normed = model.blocks[0].norm1(model.embed_norm(model.embed(TOKENS.tokens)))
        expected = [b(normed)[0].square().mean().sqrt().item() for b in branches]
    fields = observed(model)
    assert [fields["branch_rms"][b][0] for b in ("rwkv6", "mamba2")] == pytest.approx(expected)


def test_layers_without_a_branch_are_empty():
    fields = observed(randomized(build(small("gf", layout="R P", n_layers=2))))
    assert fields["branch_rms"]["mamba2"][0] is None
    assert fields["gate"][0] is None
    assert fields["gate"][1] is not None


@pytest.mark.parametrize("variant", ["rwkv6", "mamba2", "gpt2"])
def test_models_without_fusion_have_no_gate_and_no_ratio(variant):
    fields = observed(randomized(build(small(variant))))
    assert fields["grad_ratio"] is None
    assert "gate" not in fields
    assert fields["grad_rms"]["other"] > 0


def test_a_watched_step_is_the_same_step():
    plain, watched = randomized(build(small("gf"))), randomized(build(small("gf")))
    step(plain)
    step(watched, Balance(1))
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert not any(module._forward_hooks for module in watched.modules())


def test_of_several_forward_passes_the_last_is_read():
    model = randomized(build(small("gf")))
    once = observed(model)["gate"]
    ((_, fields),) = step(model, Balance(10), calls=3)
    assert fields["gate"] == once


@pytest.mark.slow
def test_compiled_blocks_are_seen_and_stay_compiled():
    model = randomized(build(small("gf")))
    expected = observed(model)
    for block in model.blocks:
        block.compile(backend="eager")
    step(model)
    found = observed(model)
    assert found["share"] == pytest.approx(expected["share"])
    with torch.compiler.set_stance("fail_on_recompile"):
        step(model)


def test_a_ratio_says_when_it_does_not_exist():
    assert ratio({"rwkv6": 1.0, "mamba2": 2.0, "other": 3.0}) == 0.5
    assert ratio({"rwkv6": 1.0, "other": 3.0}) is None
    assert ratio({"rwkv6": 1.0, "mamba2": 0.0}) == math.inf


def test_a_parameter_without_gradient_counts_as_zero():
    model = build(small("hy"))
    assert grad_rms(model) == {"rwkv6": 0.0, "mamba2": 0.0, "other": 0.0}
