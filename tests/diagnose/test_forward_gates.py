"""G1, G2 and the checkpoint test pass healthy models and find what is planted."""

from __future__ import annotations

import pytest
import torch
from diagnose.subjects import run, subject, verdicts

from groundthink.diagnose import forward_gates
from groundthink.diagnose import subject as subject_module
from groundthink.diagnose.gates import GATES
from groundthink.layers.state import State
from groundthink.models import pretrained
from groundthink.verdicts.verdict import Verdict


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(forward_gates, "LENGTHS", (1, 7, 70))
    monkeypatch.setattr(forward_gates, "PIECES", (1, 7, 32))
    monkeypatch.setattr(forward_gates, "PERTURBED", (1, 17, 40))


@pytest.mark.parametrize("variant", ["gf-mh", "rwkv6", "mamba2", "gpt2"])
def test_healthy_models_pass(variant):
    toy = subject(variant)
    found = run("G1", toy) | run("checkpoint", toy)
    assert set(found.values()) == {Verdict.PASS}, found


@pytest.mark.parametrize("variant", ["gf-mh", "mamba2", "gpt2"])
def test_a_fresh_model_is_undecided(variant):
    assert set(run("G2", subject(variant)).values()) == {Verdict.PASS}


def test_a_look_into_the_future_fails():
    toy = subject()

    def leak(module, inputs, output):
        return output[0] + 1e-3 * output[0].roll(-1, dims=1), output[1]

    toy.model.blocks[0].register_forward_hook(leak)
    findings = GATES["G1"](toy)
    assert verdicts(findings)["future leak"] is Verdict.FAIL
    (finding,) = (f for f in findings if f.name == "future leak")
    assert "token" in finding.note


def test_with_the_reference_recurrence_causality_is_exact():
    toy = subject(backend="reference")
    (finding,) = (f for f in GATES["G1"](toy) if f.name == "future leak")
    assert (finding.value, finding.note) == (0, "bit-identical")


def test_one_nan_fails():
    toy = subject()
    toy.model.blocks[1].ffn.up.weight.data[0, 0] = torch.nan
    found = run("G1", toy)
    assert found["non-finite logits"] is Verdict.FAIL
    assert found["future leak"] is Verdict.FAIL
    assert found["pieces against whole"] is Verdict.FAIL


def test_a_model_that_forgets_its_state_fails():
    toy = subject()

    def forget(module, inputs, output):
        return output[0], {part: torch.zeros_like(x) for part, x in output[1].items()}

    toy.model.blocks[0].mamba2.register_forward_hook(forget)
    assert run("G1", toy)["pieces against whole"] is Verdict.FAIL


def test_a_state_that_is_stored_in_half_precision_fails(monkeypatch):
    save = State.save
    monkeypatch.setattr(
        State, "save", lambda self, path: save(self.map(lambda x: x.half().float()), path)
    )
    assert run("G1", subject())["state round trip"] is Verdict.FAIL


def test_wrong_shapes_fail():
    toy = subject()
    toy.model.register_forward_hook(lambda module, inputs, output: (output[0][..., 1:], output[1]))
    assert run("G1", toy)["wrong shapes"] is Verdict.FAIL


def test_too_little_memory_fails(monkeypatch):
    toy = subject(train_tokens=4096)
    share = [f for f in GATES["G1"](toy) if f.name == "memory share"][0].value
    monkeypatch.setattr(forward_gates, "device_bytes", lambda device: 2**30)
    smaller = [f for f in GATES["G1"](toy) if f.name == "memory share"][0].value
    assert 0 < share < smaller
    monkeypatch.setattr(forward_gates, "device_bytes", lambda device: 2**20)
    assert run("G1", toy)["memory share"] is Verdict.FAIL


def test_activation_memory_counts_every_kept_tensor_once():
    toy = subject("gpt2")
    narrow = forward_gates.activation_bytes(toy, toy.rows(2, 32))
    wide = forward_gates.activation_bytes(toy, toy.rows(4, 32))
    assert wide == pytest.approx(2 * narrow, rel=0.05)


def test_an_overconfident_init_fails(monkeypatch):
    build = subject_module.build

    def loud(*args, **kwargs):
        model = build(*args, **kwargs)
        model.head.weight.data.mul_(100)
        return model

    toy = subject("rwkv6")
    monkeypatch.setattr(subject_module, "build", loud)
    found = run("G2", toy)
    assert found["init entropy / ln V"] is Verdict.FAIL
    assert found["init loss - ln V"] is Verdict.FAIL


def test_g2_looks_at_a_fresh_model_and_not_at_the_trained_one():
    toy = subject()
    toy.model.head.weight.data.mul_(100)
    assert set(run("G2", toy).values()) == {Verdict.PASS}


def test_weights_that_are_stored_rounded_fail(monkeypatch):
    stored = pretrained.stored_weights

    def rounded(model):
        return {name: x.bfloat16().float() for name, x in stored(model).items()}

    toy = subject()
    monkeypatch.setattr(pretrained, "stored_weights", rounded)
    assert run("checkpoint", toy)["logit difference"] is Verdict.FAIL
