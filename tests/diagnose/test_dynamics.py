"""D1 to D4 recover what is planted: growth with and without harm, collapse, idle branches."""

from __future__ import annotations

import math

import pytest
import torch
from diagnose.probes import planted
from diagnose.subjects import run

from groundthink.diagnose import dynamics, state_tests
from groundthink.diagnose.probes.growth import Growth, growth
from groundthink.models import pretrained
from groundthink.verdicts.verdict import Verdict

T = 16


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(dynamics, "LENGTH", 64)
    monkeypatch.setattr(state_tests, "TOKENS", 40)


def subject(*taus: float, **fields):
    fields = {"length": 20 * T, "texts": 16, "train_length": T, **fields}
    return planted.subject(planted.model(*taus), **fields)


def grown(exponent: float, rise: float, noise: float = 0.0) -> Growth:
    """Sizes that follow t^exponent exactly, and a loss that rises after a long context."""
    stops = [8, 16, 32, 64, 128, 240, 256]
    t = torch.tensor(stops, dtype=torch.float32)
    noises = noise * torch.randn(16, generator=torch.Generator().manual_seed(0))
    fresh = torch.full((16,), 2.0)
    loss = (fresh + rise + noises)[:, None].expand(16, 7)
    return Growth(16, stops, {"x": 3 * t.pow(exponent).expand(16, 7)}, loss, fresh, [*range(16)])


@pytest.mark.tiny
def test_growth_is_a_divergence_only_with_harm():
    assert grown(0.4, 0).exponent("x").value == pytest.approx(0.4, abs=1e-6)
    for exponent, rise, noise, verdict in (
        (0.0, 0.5, 0.0, Verdict.PASS),
        (0.4, 0.5, 0.0, Verdict.WARN),
        (1.0, 0.5, 0.0, Verdict.FAIL),
        (1.0, 0.0, 0.0, Verdict.WARN),
        (1.0, 0.02, 1.0, Verdict.INCONCLUSIVE),
    ):
        (finding,) = dynamics.diverged(grown(exponent, rise, noise))
        assert finding.verdict is verdict, (exponent, rise)


@torch.no_grad()
def test_an_exploding_layer_fails():
    """A state that keeps all it is given grows with t; its harm is planted on one token."""
    toy = subject(4.0, 1e9)
    toy.documents[:] = [torch.full((20 * T,), 7)] * 16
    target = toy.model.embed.weight[7].detach()

    def harm(module, inputs, output):
        size = output[1]["wkv"].square().mean((1, 2, 3)).sqrt()
        return output[0] - size[:, None, None] * target, output[1]

    toy.model.blocks[1].rwkv6.register_forward_hook(harm)
    toy.model.blocks[1].branch_norm = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    toy.model.blocks[1].fusion.join = lambda x, r, m, norms: x + r + m
    found = growth(toy)
    assert found.exponent("blocks.1.rwkv6").value == pytest.approx(1, abs=0.05)
    assert found.exponent("blocks.0.rwkv6").value == pytest.approx(0, abs=0.05)
    assert found.rise.low > 0.02
    verdicts = {finding.name: finding.verdict for finding in dynamics.diverged(found)}
    assert verdicts["growth exponent, blocks.1.rwkv6"] is Verdict.FAIL
    assert verdicts["growth exponent, blocks.0.rwkv6"] is Verdict.PASS
    assert run("D4a", toy)["loss beyond training length"] is Verdict.FAIL


def test_short_documents_leave_growth_open_and_say_what_is_needed():
    (finding,) = dynamics.divergence(subject(10.0, length=2 * T))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert f"stretches of {4 * T} tokens" in finding.note


def test_a_frozen_state_is_collapsed():
    toy = subject(50.0, 50.0)
    toy.model.blocks[1].mamba2.register_forward_hook(
        lambda _, inputs, output: (
            output[0],
            output[1] | {"ssm": torch.ones_like(output[1]["ssm"])},
        )
    )
    found = run("D2", toy)
    assert found["input share, blocks.1.mamba2"] is Verdict.FAIL
    assert found["input share, blocks.0.rwkv6"] is Verdict.PASS
    assert found["change of the input share"] is Verdict.INCONCLUSIVE, "no earlier checkpoint"


def test_states_that_training_wore_away_fail(tmp_path):
    early, late = planted.model(50.0, 50.0), planted.model(50.0, 50.0)
    for step, model in ((1, early), (5, late)):
        folder = tmp_path / "checkpoints" / f"step-{step:08}"
        pretrained.save(folder, model, None, {"step": step})
    for block in late.blocks:
        block.rwkv6.value.weight.data.zero_()
        block.mamba2.in_proj.weight.data.zero_()
    toy = planted.subject(late, length=64, texts=16, folder=tmp_path)
    assert run("D2", toy)["change of the input share"] is Verdict.FAIL
    toy = planted.subject(early, length=64, texts=16, folder=tmp_path)
    assert run("D2", toy)["change of the input share"] is Verdict.PASS


def test_a_branch_without_output_fails():
    toy = subject(20.0, 20.0)
    for block in toy.model.blocks:
        block.mamba2.out_proj.weight.data.zero_()
    findings = {f.name: f for f in dynamics.interaction(toy)}
    for mode in ("zero", "resample"):
        lost = findings[f"loss without Mamba-2, {mode}"]
        assert lost.value == lost.low == lost.high == 0
        assert lost.verdict is Verdict.FAIL
        assert findings[f"loss without RWKV-6, {mode}"].value != 0


def test_context_is_worth_nothing_to_a_model_that_hears_no_mixer():
    toy = subject(20.0, 20.0, length=160)
    for block in toy.model.blocks:
        planted.silence(block)
    findings = {f.name: f for f in dynamics.length(toy)}
    assert findings["benefit of context"].verdict is Verdict.WARN
    assert findings["benefit of context"].value == pytest.approx(0, abs=1e-6)
    assert findings["loss beyond training length"].value == pytest.approx(0, abs=1e-6)


def test_gpt2_is_read_as_far_as_its_positions_go():
    from toys import randomized, small

    from groundthink.models.build import build

    model = randomized(build(small("gpt2", context_length=128))).eval()
    toy = planted.subject(model, length=200, texts=16, train_length=64)
    names = {f.name for f in dynamics.length(toy)}
    assert names == {"loss beyond training length"}, "96 tokens of context are left"
    asked = planted.subject(model, length=200, texts=16, train_length=64, lengths=(40, 80))
    (finding,) = dynamics.length(asked)
    assert "80 tokens of context against 40" in finding.note and "nats after 40" in finding.note
    assert {f.name for f in dynamics.reach(toy)} == {"influence at 64"}


def test_influence_and_flow_follow_what_is_remembered():
    forgetful = run("D4b", subject(0.0, 0.0))
    assert forgetful["influence at 64"] is Verdict.FAIL
    assert forgetful["RWKV share of the flow"] is Verdict.FAIL, "nothing flows"
    mindful = {f.name: f for f in dynamics.reach(subject(1e3, 1e3))}
    assert mindful["influence at 64"].verdict is Verdict.PASS
    one_sided = planted.model(1e3, 1e3)
    for block in one_sided.blocks:
        block.mamba2.A_log.data.fill_(math.log(1e4))
    (share,) = [
        f
        for f in dynamics.reach(planted.subject(one_sided, length=300, texts=40))
        if f.name == "RWKV share of the flow"
    ]
    assert share.value == pytest.approx(1)
    assert share.verdict is Verdict.FAIL
