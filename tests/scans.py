"""What the tests of both recurrences share: a run forward and backward, and its distance."""

from __future__ import annotations

import torch

from groundthink.ops.testing import relative_rms


def run(op, inputs, reset, grads, dtype=torch.float64, **kwargs):
    """y, the final state and the gradient of every input; `grads` are those of y and the state."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    outputs = op(*leaves, reset, **kwargs)
    grads = [grad.to(out.dtype) for grad, out in zip(grads, outputs, strict=True)]
    return *outputs, *torch.autograd.grad(outputs, leaves, grads)


def assert_close(results, oracle, bound, names):
    """Every relative RMS error is within the bound."""
    errors = {
        name: relative_rms(value, expected)
        for name, value, expected in zip(names, results, oracle, strict=True)
    }
    assert all(error <= bound for error in errors.values()), errors
