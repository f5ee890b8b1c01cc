"""Preparing a model for the probes changes nothing but the time that they take."""

from __future__ import annotations

import pytest
import torch
from toys import randomized, small

from groundthink.diagnose.probes.prepare import prepare
from groundthink.models.build import build


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prepared_kernels_give_the_same_as_before():
    model = randomized(build(small("gf-mh"))).eval().to("cuda")
    tokens = torch.randint(50, (16, 96), device="cuda")
    with torch.no_grad():
        before = model.features(tokens)[0].clone()
        prepare(model)
        assert torch.equal(model.features(tokens)[0], before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.tiny
@pytest.mark.parametrize("variant", ["gf-mh", "gpt2"])
def test_on_a_cpu_there_is_nothing_to_prepare(variant):
    model = build(small(variant))
    model.features = None  # not even called
    prepare(model)
