from __future__ import annotations

import pytest
import torch
from toys import small

from groundthink import build
from groundthink.data.stream import Batch
from groundthink.diagnose.subject import Subject
from groundthink.lab import graduation


@pytest.fixture
def subject() -> Subject:
    tokens = torch.randint(50, (4, 256), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, tokens, torch.zeros_like(tokens, dtype=torch.bool))
    return Subject(build(small("gf", d_model=64)), [batch])


@pytest.mark.slow
def test_a_healthy_model_learns_ten_sequences_by_heart(subject):
    (finding,) = graduation.overfit(subject)
    assert finding.verdict == "PASS", finding


def test_a_model_that_cannot_learn_fails(subject, monkeypatch):
    def frozen(*args, **kwargs):
        model = build(*args, **kwargs)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name)
        return model

    monkeypatch.setattr(graduation, "build", frozen)
    monkeypatch.setattr(graduation, "STEPS", 30)
    (finding,) = graduation.overfit(subject)
    assert finding.verdict == "FAIL" and "30 steps" in finding.note
