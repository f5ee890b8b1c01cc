"""What is remembered of a reset mask follows the mask."""

from __future__ import annotations

import pytest
import torch

from groundthink.ops.cuts import once
from groundthink.ops.testing import relative_rms
from groundthink.ops.wkv6 import wkv6


@pytest.mark.tiny
def test_made_once_for_a_mask_until_it_changes():
    reset, calls = torch.zeros(2, 3, dtype=torch.bool), []

    def make():
        calls.append(1)
        return reset.sum().item()

    assert [once(reset, "sum", make), once(reset, "sum", make)] == [0, 0]
    assert len(calls) == 1
    reset[0, 1] = True
    assert once(reset, "sum", make) == 1
    assert once(reset.clone(), "sum", make) == 1 and len(calls) == 3


@pytest.mark.tiny
def test_a_mask_may_be_filled_again():
    """As a loader does that keeps its buffers."""
    torch.manual_seed(0)
    r, k, v = torch.randn(3, 1, 40, 2, 4)
    log_w, u, reset = -torch.rand(1, 40, 2, 4), torch.randn(2, 4), torch.zeros(1, 40).bool()
    for at in (7, 35):
        reset.zero_()[0, at] = True
        y, _ = wkv6(r, k, v, log_w, u, None, reset, backend="chunked")
        expected, _ = wkv6(r, k, v, log_w, u, None, reset, backend="reference")
        assert relative_rms(y, expected) < 1e-5
    with torch.inference_mode():
        again, _ = wkv6(r, k, v, log_w, u, None, reset.clone(), backend="chunked")
    assert torch.equal(again, y)
