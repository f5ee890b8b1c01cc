"""S0 to S4 pass live states and find each planted fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diagnose.probes import planted
from diagnose.subjects import run, subject
from toys import randomized, small

from groundthink.diagnose import state_tests
from groundthink.models.build import build
from groundthink.verdicts.verdict import Verdict

ALWAYS = ("S0", "S1", "S2", "S3", "S3b", "S4b")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(state_tests, "ROWS", 8)
    monkeypatch.setattr(state_tests, "TOKENS", 40)


def altered(toy, module: str, change):
    """The subject with `change(state of one call)` in place of what a module gives on."""
    toy.model.get_submodule(module).register_forward_hook(
        lambda _, inputs, output: (output[0], change(dict(output[1])))
    )
    return toy


@pytest.mark.parametrize("variant", ["gf-mh", "rwkv6", "mamba2", "gpt2"])
def test_live_states_pass(variant):
    toy = subject(variant)
    found = {name: verdict for id in ALWAYS for name, verdict in run(id, toy).items()}
    if variant == "gpt2":
        assert found.pop("distance between texts") is Verdict.INCONCLUSIVE
        assert found.pop("state moved by a token") is Verdict.INCONCLUSIVE
    assert set(found.values()) == {Verdict.PASS}, found


def test_channel_mixing_has_its_token_shift():
    model = randomized(build(small("gf", ffn="rwkv"))).eval()
    assert run("S0", replace(subject(), model=model))["wrong states"] is Verdict.PASS
    model.blocks[1].ffn.register_forward_hook(lambda _, inputs, output: (output[0], {}))
    assert run("S0", replace(subject(), model=model))["wrong states"] is Verdict.FAIL


def test_a_missing_part_fails():
    toy = altered(subject(), "blocks.1.mamba2", lambda state: {"ssm": state["ssm"]})
    assert run("S0", toy)["wrong states"] is Verdict.FAIL


def test_a_huge_and_a_broken_state_fail():
    toy = altered(subject(), "blocks.1.rwkv6", lambda s: s | {"wkv": 1e6 * s["wkv"]})
    found = run("S1", toy)
    assert found["state RMS, blocks.1.rwkv6"] is Verdict.FAIL
    assert found["state RMS, blocks.0.rwkv6"] is Verdict.PASS
    toy = altered(subject(), "blocks.0.mamba2", lambda s: s | {"conv": s["conv"] / 0})
    assert run("S1", toy) == {"non-finite state entries": Verdict.FAIL}


def test_a_state_that_is_the_same_for_all_texts_fails():
    toy = altered(subject(), "blocks.1.rwkv6", lambda s: s | {"wkv": torch.ones_like(s["wkv"])})
    found = run("S2", toy)
    assert found.pop("distance between texts, blocks.1.rwkv6") is Verdict.FAIL
    assert set(found.values()) == {Verdict.PASS}


def test_noise_in_the_state_fails():
    toy = altered(
        subject(), "blocks.0.rwkv6", lambda s: s | {"wkv": s["wkv"] + torch.rand_like(s["wkv"])}
    )
    assert run("S3", toy)["difference of two passes"] is Verdict.FAIL


def test_a_state_that_no_gradient_passes_fails():
    toy = subject()

    def cut(module, inputs):
        x, state, *rest = inputs
        return x, {part: value.detach() for part, value in state.items()}, *rest

    toy.model.blocks[1].mamba2.register_forward_pre_hook(
        lambda module, inputs: cut(module, inputs) if inputs[1] else None
    )
    (finding,) = state_tests.state_gradient(toy)
    assert finding.verdict is Verdict.FAIL
    assert finding.value == 2
    assert "blocks.1.mamba2.ssm" in finding.note and "blocks.1.mamba2.conv" in finding.note
    assert all(p.grad is None for p in toy.model.parameters())


def test_a_branch_whose_state_nobody_reads_fails():
    model = planted.model(20.0, 20.0)
    for block in model.blocks:
        block.rwkv6.receptance.weight.data.zero_()
        block.rwkv6.time_faaaa.data.zero_()
    findings = {f.name: f for f in state_tests.contribution(planted.subject(model, length=80))}
    assert findings["loss without RWKV-6"].verdict is Verdict.FAIL
    assert abs(findings["loss without RWKV-6"].value) < 1e-6
    assert findings["loss without Mamba-2"].value != 0
    (skipped,) = state_tests.contribution(subject("rwkv6"))
    assert skipped.verdict is Verdict.INCONCLUSIVE


def test_states_that_forget_at_once_fail():
    toy = replace(subject(), model=planted.model(0.0, 0.0))
    assert set(run("S4b", toy).values()) == {Verdict.FAIL}
