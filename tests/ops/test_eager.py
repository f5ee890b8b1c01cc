"""The hand-written gradients of the eager forms: those of the reference under autograd."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
from kernel_laws import DEVICE, normal

from groundthink.ops.conv import conv_silu_dt, parts
from groundthink.ops.fusion import token_gate
from groundthink.ops.norm import gated_rms_norm, head_norm_gate, residual_norm, rms_norm
from groundthink.ops.shift import project

pytestmark = pytest.mark.tiny


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def resets(steps: int, given: bool):
    return torch.rand(2, steps, device=DEVICE) < 0.2 if given else None


@pytest.mark.parametrize("op", [rms_norm, residual_norm, gated_rms_norm, head_norm_gate])
@pytest.mark.parametrize("steps", [1, 15])
def test_norms(op, steps):
    x, y, weight, bias = normal(2, steps, 24), normal(2, steps, 24), normal(24), normal(24)
    args = {
        rms_norm: (x, weight, 1e-5),
        residual_norm: (x, weight, 1e-5),
        gated_rms_norm: (x, y, weight, 3, 1e-5),
        head_norm_gate: (x.unflatten(-1, (3, 8)), y, weight, bias, 1e-3),
    }[op]
    kernel_laws.equals_the_reference(op, args, backend="eager")


def test_a_gated_norm_of_one_group():
    args = normal(2, 9, 24), normal(2, 9, 24), normal(24), 1, 1e-5
    kernel_laws.equals_the_reference(gated_rms_norm, args, backend="eager")


@pytest.mark.parametrize("normed", [True, False])
def test_token_gate(normed):
    x, r, m = (normal(2, 15, 24) for _ in range(3))
    norms = (normal(24), normal(24)) if normed else (None, None)
    args = x, r, m, *norms, normal(1, 48), normal(1), 1e-5
    kernel_laws.equals_the_reference(token_gate, args, backend="eager")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("steps, width", [(15, 4), (1, 4), (2, 5), (9, 1)])
def test_convolution(steps, width, given):
    x, dt = normal(2, steps, 20), normal(2, steps, 3)
    weights = normal(20, width), normal(20), normal(3), normal(2, 20, width - 1)
    args = x, dt, *weights, resets(steps, given)
    kernel_laws.equals_the_reference(conv_silu_dt, args, backend="eager")


@pytest.mark.parametrize("steps", [1, 15])
def test_projection_in_parts(steps):
    def op(x, weight, backend):
        return parts(x, weight, (16, 10, 4), backend=backend)

    kernel_laws.equals_the_reference(op, (normal(2, steps, 24), normal(30, 24)), backend="eager")


def with_weights(*args, backend):
    """`project` with its four weights after one another and the reset last."""
    *args, k, v, r, g, reset = args
    return project(*args, (k, v, r, g), reset, backend=backend)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("steps", [1, 15])
def test_projections(steps, given):
    blends = normal(24), normal(24, 20, scale=0.2), normal(5, 4, 24, scale=0.5), normal(5, 24)
    weights = (normal(24, 24, scale=0.2) for _ in range(4))
    args = normal(2, steps, 24), normal(2, 24), *blends, *weights, resets(steps, given)
    kernel_laws.equals_the_reference(with_weights, args, backend="eager")
