from __future__ import annotations

import pytest
import torch

from groundthink.bench import contestants, work
from groundthink.bench.config import BenchModel

CPU = torch.device("cpu")


def test_gpt2_of_transformers_decodes_as_it_reads(bench: BenchModel):
    pytest.importorskip("transformers")
    model = contestants.make("gpt2", bench, CPU).eval()
    tokens = work.random_batch(50, 1, 12, CPU).tokens
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


@pytest.mark.parametrize("name", ["gf-tiny", "gpt2"])
def test_training_carries_the_state_of_a_recurrent_model_only(bench: BenchModel, name: str):
    training = work.Training(contestants.make(name, bench, CPU), CPU)
    batch = work.random_batch(50, 2, 8, CPU)
    first, norm = training.step(batch)
    second, _ = training.step(batch)
    assert second < first and norm > 0
    assert (training.state is not None) == (name == "gf-tiny")
    if training.state:
        assert not any(x.requires_grad for _, x in training.state.items())


def test_decoding_starts_every_lap_after_the_same_prompt(bench: BenchModel):
    pytest.importorskip("transformers")
    model = contestants.make("gpt2", bench, CPU)
    lengths = []
    model.inner.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["past_key_values"].get_seq_length()),
        with_kwargs=True,
    )
    lap = work.decode_lap(model, work.random_batch(50, 1, 12, CPU), CPU, "fp32")
    assert lap() > 0 and lap() > 0
    assert lengths == 2 * [0, *range(12, 12 + work.DECODED)]


def test_gradients_are_clipped_before_the_step(bench: BenchModel, monkeypatch):
    monkeypatch.setattr(work, "CLIP", 1e-3)
    training = work.Training(contestants.make("gf-tiny", bench, CPU), CPU)
    _, norm = training.step(work.random_batch(50, 2, 8, CPU))
    clipped = torch.cat([p.grad.flatten() for p in training.model.parameters()]).norm()
    assert norm > 1e-2 and clipped == pytest.approx(1e-3, rel=1e-2)
