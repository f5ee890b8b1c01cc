"""The checks of the two branches pass healthy models and find what is planted."""

from __future__ import annotations

import pytest
import torch
from diagnose.subjects import run, subject

from groundthink.diagnose.gates import GATES
from groundthink.verdicts.verdict import Verdict

SHORT = (20, 1, 24)
LONG = (4, 4, 128)
CHECKS = ("gradient-flow", "outputs", "independence", "pre-balance")
PAIRED = ("G4", "independence", "pre-balance")


def test_a_healthy_model_passes():
    toy = subject(shape=LONG)
    found = {name: verdict for id in CHECKS for name, verdict in run(id, toy).items()}
    assert set(found.values()) == {Verdict.PASS}, found


def test_g4_measures_rms_per_parameter_over_twenty_batches():
    toy = subject(shape=SHORT)
    (finding,) = GATES["G4"](toy)
    assert finding.n == 20
    assert finding.low <= finding.value <= finding.high
    assert finding.verdict is Verdict.PASS
    assert all(p.grad is None for p in toy.model.parameters())


def dead(module, inputs, output):
    return output[0].detach(), output[1]


def test_a_branch_without_gradient_fails():
    toy = subject(shape=SHORT)
    for block in toy.model.blocks:
        block.mamba2.register_forward_hook(dead)
    assert run("G4", toy)["gradient R/M"] is Verdict.FAIL
    (finding,) = GATES["gradient-flow"](toy)
    assert finding.verdict is Verdict.FAIL
    assert finding.value == sum(
        "mamba2" in name
        for name, _ in toy.model.named_parameters()
        if ".mamba2." in name and "branch_norm" not in name
    )
    assert "blocks.0.mamba2" in finding.note


def test_few_batches_leave_the_balance_open():
    (finding,) = GATES["G4"](subject(shape=(4, 1, 24)))
    assert finding.verdict is Verdict.INCONCLUSIVE


def test_a_silent_and_a_broken_branch_fail():
    toy = subject(shape=LONG)
    toy.model.blocks[1].rwkv6.output.weight.data.zero_()
    found = run("outputs", toy)
    assert found["output std, blocks.1.rwkv6"] is Verdict.FAIL
    assert found["output std, blocks.0.rwkv6"] is Verdict.PASS
    toy.model.blocks[0].mamba2.out_proj.weight.data[0, 0] = torch.nan
    assert run("outputs", toy)["non-finite outputs"] is Verdict.FAIL


def test_a_copied_branch_fails():
    toy = subject(shape=LONG)
    block, heard = toy.model.blocks[0], []
    block.rwkv6.register_forward_hook(lambda module, inputs, output: heard.append(output[0]))
    block.mamba2.register_forward_hook(lambda module, inputs, output: (3 * heard[-1], output[1]))
    found = run("independence", toy)
    assert found["branch cosine, blocks.0"] is Verdict.FAIL
    assert found["branch cosine, blocks.1"] is Verdict.PASS


def test_an_extreme_gate_warns_before_training():
    assert set(run("pre-balance", subject("gf-xm", shape=LONG)).values()) == {Verdict.WARN}


@pytest.mark.parametrize("variant", ["rwkv6", "mamba2", "gpt2"])
def test_models_without_both_branches_skip_what_compares_them(variant):
    toy = subject(variant, shape=LONG)
    for id in PAIRED:
        (finding,) = GATES[id](toy)
        assert finding.verdict is Verdict.INCONCLUSIVE
        assert "no block of this model fuses" in finding.note
    assert run("gradient-flow", toy)["parameters without gradient"] is Verdict.PASS
