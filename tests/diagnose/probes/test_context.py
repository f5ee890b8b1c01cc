"""The context heat map finds the token that was planted, and nothing where nothing can be."""

from __future__ import annotations

import pytest
import torch
from diagnose.subjects import subject
from toys import randomized, small

from groundthink import build
from groundthink.diagnose.probes import context as probe
from groundthink.diagnose.probes.context import first_order, gains, leave_one_out
from groundthink.diagnose.probes.coupling import spearman
from groundthink.verdicts.verdict import Verdict

T = 30
TEXT = torch.randint(50, (T,), generator=torch.Generator().manual_seed(0))
POOL = torch.arange(50)
ROUNDING = 1e-5
"""Nats that another shape of the same products may move a prediction."""


def looking_back(variant: str = "mamba2"):
    """A layer whose Mamba-2 reads only the token three before, and that keeps no state."""
    model = randomized(build(small(variant, n_layers=1, mamba_conv=4))).eval()
    block = model.blocks[0]
    with torch.no_grad():
        block.mamba2.conv1d.weight.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        block.mamba2.dt_bias.fill_(-1e3)
        if hasattr(block, "rwkv6"):
            block.rwkv6.output.weight.zero_()
    return model


def significant(effect: torch.Tensor) -> list[int]:
    return (effect.abs() > ROUNDING).nonzero().flatten().tolist()


def test_a_planted_dependence_is_found_and_no_other():
    found = leave_one_out(looking_back(), TEXT, 5, POOL)
    assert significant(found.kl) == significant(found.drop) == [T - 4, T - 1]
    assert (found.drawn != TEXT).all()


def test_nothing_before_a_reset_has_an_effect():
    model = randomized(build(small("gf"))).eval()
    reset = torch.zeros(T, dtype=torch.bool)
    reset[11] = True
    assert significant(leave_one_out(model, TEXT, 5, POOL).kl) == list(range(T))
    assert significant(leave_one_out(model, TEXT, 5, POOL, reset=reset).kl) == list(range(11, T))


@pytest.mark.parametrize("variant", ["gf", "gpt2"])
def test_an_effect_is_the_difference_of_two_predictions(variant):
    """Though it is computed from the state before the replaced token."""
    model = randomized(build(small(variant))).eval()
    found = leave_one_out(model, TEXT, 5, POOL, draws=1)
    with torch.no_grad():
        for i in (0, 13, T - 1):
            other = TEXT.clone()
            other[i] = found.drawn[0, i]
            a, b = model(torch.stack((TEXT, other)))[0][:, -1].log_softmax(-1)
            assert float(found.drop[i]) == pytest.approx(float(a[5] - b[5]), abs=1e-5)
            assert float(found.kl[i]) == pytest.approx(float((a.exp() * (a - b)).sum()), abs=1e-5)
    assert found.log_p == pytest.approx(float(a[5]))


def test_the_gradient_goes_through_the_branch_that_is_named():
    model = looking_back("gf")
    drawn = leave_one_out(model, TEXT, 5, POOL).drawn
    every, mamba, rwkv = (first_order(model, TEXT, 5, drawn, b) for b in ("all", "mamba2", "rwkv6"))
    torch.testing.assert_close(every, mamba)
    assert significant(mamba) == [T - 4, T - 1]
    assert significant(rwkv) == [T - 1], "the residual stream alone"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_close_replacements_fall_as_the_gradient_says():
    model = randomized(build(small("gf"))).eval().double()
    with torch.no_grad():  # all tokens nearly alike: the first order is all there is
        weight = model.embed.weight
        model.head.weight = torch.nn.Parameter(weight.clone())
        weight.copy_(weight[:1] + 1e-4 * (weight - weight[:1]))
    found = leave_one_out(model, TEXT, 5, POOL)
    slope = first_order(model, TEXT, 5, found.drawn)
    assert float((found.drop - slope).norm() / slope.norm()) < 0.01
    assert spearman(found.drop, slope) > 0.99


def test_only_context_beyond_the_nearest_tokens_counts_as_gain():
    texts = torch.randint(50, (3, 60), generator=torch.Generator().manual_seed(1))
    assert gains(looking_back(), texts).abs().max() < ROUNDING
    model = randomized(build(small("gf"))).eval()
    assert gains(model, texts).shape == (3, probe.AHEAD)
    assert gains(model, texts).abs().min() > ROUNDING


@pytest.mark.parametrize("variant", ["gf-mh", "rwkv6", "gpt2"])
def test_the_probe_gives_its_rows(variant, monkeypatch):
    monkeypatch.setattr(probe, "SPAN", 16)
    documents = [batch.tokens[0] for batch in subject("gf").batches]
    toy = subject(variant, shape=(1, 1, 4), documents=documents, samples=4)
    rows = probe.context(toy)
    kinds = [kind for kind, _ in rows]
    both = variant == "gf-mh"
    assert kinds == ["passage"] * 4 + ["reach"] * (4 if both else 2) + ["finding"]
    passage = rows[0][1]
    assert len(passage["tokens"]) == 17 and len(passage["kl"]) == len(passage["drop"]) == 16
    assert passage["first_order"].keys() == ({"all", "rwkv6", "mamba2"} if both else {"all"})
    reach = rows[4][1]
    assert reach["low"] <= reach["distance"] <= reach["high"] <= 16
    assert [len(row) for row in reach["map"]] == list(range(1, 17))
    assert rows[-1][1]["verdict"] == Verdict.PASS
