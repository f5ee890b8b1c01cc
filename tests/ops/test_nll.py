"""The negative log-likelihood in place against torch's cross-entropy."""

from __future__ import annotations

import kernel_laws as laws
import pytest
import torch
import torch.nn.functional as F

from groundthink.errors import UserError
from groundthink.ops.nll import BACKENDS, nll_
from groundthink.ops.testing import poisoned_memory, relative_rms

pytestmark = [pytest.mark.usefixtures("interpreter"), pytest.mark.tiny]


def case(rows, size, scale=3.0):
    targets = torch.randint(size, (rows,), device=laws.DEVICE)
    targets[::3] = -100
    return laws.normal(rows, size, scale=scale), targets


@pytest.mark.parametrize("dtype", [torch.float32, laws.HALF])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows, size, block", [(5, 37, 64), (4, 100, 16), (3, 1, 4), (0, 7, 8)])
def test_losses_and_gradient_are_those_of_cross_entropy(
    rows, size, block, backend, dtype, monkeypatch
):
    if backend == "triton":  # rows of one block and of many
        monkeypatch.setattr("groundthink.ops.nll.launch.BLOCK", block)
    logits, targets = case(rows, size)
    logits = logits.to(dtype)
    leaf = logits.double().requires_grad_()
    exact = F.cross_entropy(leaf, targets, reduction="none")
    (gradient,) = torch.autograd.grad(exact.sum(), leaf)
    losses = nll_(logits, targets, backend=backend)
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    bound = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(logits.double(), gradient, rtol=bound, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 2.0, 2.0]], device=laws.DEVICE)
    losses = nll_(logits, torch.tensor([1, 2], device=laws.DEVICE), backend=backend)
    torch.testing.assert_close(losses.cpu(), torch.tensor([2e4, 0.693147]))
    expected = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.5, -0.5]])
    torch.testing.assert_close(logits.cpu(), expected)


def test_runs_repeat_bitwise_and_read_no_uninitialised_memory():
    logits, targets = case(6, 50)
    first, second = logits.clone(), logits.clone()
    losses = nll_(first, targets, backend="triton")
    with poisoned_memory():
        again = nll_(second, targets, backend="triton")
    assert torch.equal(losses, again) and torch.equal(first, second)


def test_targets_of_another_length_are_refused():
    with pytest.raises(UserError, match=r"targets has shape \[3\], expected \[4\]"):
        nll_(torch.zeros(4, 5), torch.zeros(3, dtype=torch.long))


@pytest.mark.gpu
@pytest.mark.skipif(laws.DEVICE.type != "cuda", reason="needs a GPU")
def test_large_vocabularies():
    for size in (16384, 50257, 128256):
        logits, targets = case(64, size)
        half = logits.bfloat16()
        log_p = half.double().log_softmax(-1)
        expected = log_p.exp()
        expected.scatter_add_(1, targets.clamp(min=0)[:, None], -expected.new_ones(64, 1))
        losses = nll_(half, targets)
        scored = targets >= 0
        exact = -log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0] * scored
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
        assert relative_rms(half, expected * scored[:, None]) <= 4e-3
