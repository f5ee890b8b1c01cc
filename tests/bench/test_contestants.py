from __future__ import annotations

import pytest
import torch

from groundthink.bench import contestants, work
from groundthink.bench.config import BenchModel
from groundthink.errors import UserError
from groundthink.lab.benching import Training
from groundthink.ops.ssd import BACKENDS as SSD_BACKENDS
from groundthink.ops.wkv6 import BACKENDS as WKV6_BACKENDS

CPU = torch.device("cpu")


def test_gpt2_of_transformers_decodes_as_it_reads(bench: BenchModel):
    pytest.importorskip("transformers")
    model = contestants.make("gpt2", bench, CPU).eval()
    tokens = work.random_batch(50, 1, 12).tokens
    with torch.no_grad():
        whole, _ = model(tokens)
        state, steps = model.init_state(1), []
        for token in tokens.split(1, dim=1):
            logits, state = model(token, state)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(
        3.56e6 + 192 * 1074, rel=0.01
    )


@pytest.mark.parametrize("name", ["gf-tiny", "gpt2", "gpt2-tiny"])
def test_a_step_is_that_of_training_and_carries_the_state_of_a_recurrent_model_only(bench, name):
    if name == "gpt2":
        pytest.importorskip("transformers")
    step = Training(contestants.make(name, bench, CPU), CPU, "fp32")
    batch = work.random_batch(50, 2, 8)
    first, norm = step(batch)
    second, _ = step(batch)
    assert second < first and norm > 0
    assert (step.stepper.state is not None) == (name == "gf-tiny")


def test_attention_takes_its_form_without_a_mask(bench: BenchModel):
    """Documents are not kept apart, so that a GPT-2 runs as fast as it can."""
    model = contestants.make("gpt2-tiny", bench, CPU)
    tokens, _, reset = work.random_batch(50, 1, 8)
    with_reset, _ = model(tokens, None, reset)
    attention = model.blocks[0].attention
    x = torch.randn(1, 8, model.config.d_model)
    assert torch.equal(attention(x, None, reset)[0], attention(x, None, None)[0])
    assert with_reset.isfinite().all()


def test_the_peers_enter_both_tables_and_auto_passes_them_by(bench, monkeypatch):
    """Operators of the right meaning and shape stand in for those of other projects."""
    before = dict(WKV6_BACKENDS), dict(SSD_BACKENDS)
    calls = []

    def other(op):
        def run(*operands):
            calls.append(op.__name__)
            return op(*operands)

        return lambda: run

    from groundthink.ops import ssd, wkv6

    for name, op in (("fla_chunk", wkv6), ("fla_recurrent", wkv6), ("mamba", ssd)):
        monkeypatch.setattr(contestants.peers, name, other(op))
    monkeypatch.setattr(contestants.peers, "mamba_step", other(ssd))
    try:
        error, verdict = contestants.parity("peers", bench, CPU)
        assert error < 1e-4 and verdict == "PASS" and set(calls) == {"wkv6", "ssd"}
        assert next(iter(WKV6_BACKENDS)) == next(iter(SSD_BACKENDS)) == "peers"
        calls.clear()
        contestants.make(bench.model, bench, CPU)(torch.zeros(1, 4, dtype=torch.int64))
        assert not calls
    finally:
        for table, forms in zip((WKV6_BACKENDS, SSD_BACKENDS), before, strict=True):
            table.clear()
            table.update(forms)


@pytest.mark.tiny
def test_contestants_that_cannot_run_are_named_before_anything_is_measured():
    contestants.require("gpt2-tiny+compile")
    with pytest.raises(UserError, match="unknown model 'gpt3-5m'"):
        contestants.require("gpt3-5m+compile")
    if contestants.peers.missing("fla"):
        with pytest.raises(UserError, match="fla: not installed"):
            contestants.require("peers")
