"""SSD: every backend against the recurrence in fp64, and the laws of a stateful scan."""

from __future__ import annotations

from functools import lru_cache

import pytest
import scans
import torch
from scans import run

from groundthink.errors import UserError
from groundthink.ops import ssd
from groundthink.ops.ssd import BACKENDS
from groundthink.ops.ssd.reference import ssd_reference
from groundthink.ops.testing import REGIMES, log_decays, poisoned_memory, relative_rms

NAMES = ("y", "final state", "dx", "ddt", "dA", "dB", "dC", "dD", "dstate")
HEADS = 4
ANYWHERE = [name for name in BACKENDS if name != "triton"]
every_backend = pytest.mark.parametrize("backend", ANYWHERE)


def make(steps, p=5, n=3, groups=2, regime="initial", batch=2, resets=True):
    """fp32 inputs, a reset mask, and gradients for y and the final state."""
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    A = -torch.exp(2 * torch.rand(HEADS, generator=generator))
    dt = (log_decays(regime, (batch, steps, HEADS), generator) / A).float()
    B, C = normal(batch, steps, groups, n), normal(batch, steps, groups, n)
    state = normal(batch, HEADS, p, n)
    inputs = normal(batch, steps, HEADS, p), dt, A, B, C, normal(HEADS), state
    reset = torch.rand(batch, steps, generator=generator) < 0.03 if resets else None
    return inputs, reset, (normal(batch, steps, HEADS, p), normal(batch, HEADS, p, n))


def assert_close(results, oracle, bound):
    scans.assert_close(results, oracle, bound, NAMES)


@lru_cache
def case(steps, regime, **kwargs):
    inputs = make(steps, regime=regime, **kwargs)
    return inputs, run(ssd_reference, *inputs)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 63, 64, 65, 1000])
@every_backend
def test_values_and_gradients_equal_the_fp64_recurrence(backend, steps, regime):
    inputs, oracle = case(steps, regime)
    assert_close(run(ssd, *inputs, torch.float32, backend=backend), oracle, 1e-5)
    if backend != "reference":
        assert_close(run(ssd, *inputs, backend=backend), oracle, 1e-12)


@pytest.mark.parametrize("p, n, groups", [(64, 64, 1), (7, 16, 4), (1, 1, 2), (33, 5, 1)])
@every_backend
def test_any_head_size_state_size_and_groups(backend, p, n, groups):
    for regime in ("trained", "mixed"):
        inputs, oracle = case(130, regime, p=p, n=n, groups=groups)
        assert_close(run(ssd, *inputs, torch.float32, backend=backend), oracle, 1e-5)


@pytest.mark.parametrize("log_decay", [0.0, -1e-7, -50.0, -1e9])
@every_backend
def test_decays_at_and_beyond_the_edge(backend, log_decay):
    """One token in eight at the edge among mild ones: neither may drown or upset the other."""
    (x, dt, A, *rest), reset, grads = make(200, regime="trained")
    dt[:, ::8] = log_decay / A
    inputs = (x, dt, A, *rest)
    oracle = run(ssd_reference, inputs, reset, grads)
    assert_close(run(ssd, inputs, reset, grads, torch.float32, backend=backend), oracle, 1e-5)


@pytest.mark.parametrize("total", [40.0, 42.0, 50.0, 59.0, 70.0, 85.0, 87.0, 120.0])
@every_backend
def test_decays_of_half_a_chunk_from_mild_to_strong(backend, total):
    """Two such halves meet between the middles of two chunks, and e^-88 is less than fp32 has."""
    (x, dt, A, *rest), resets, grads = make(192, regime="trained")
    dt[:, :, 0] = -total / 32 / A[0]
    inputs = (x, dt, A, *rest)
    for reset in (None, resets):
        oracle = run(ssd_reference, inputs, reset, grads)
        assert_close(run(ssd, inputs, reset, grads, torch.float32, backend=backend), oracle, 1e-5)


@every_backend
def test_resets_at_any_token(backend):
    """At the first and last tokens of sequence and chunks, in a row, and at every token."""
    inputs, _, grads = make(130)
    for at in ([0], [129], [63, 64, 65], [32, 33], [1, 2, 3, 100], list(range(130))):
        reset = torch.zeros(2, 130, dtype=torch.bool)
        reset[1, at] = True
        oracle = run(ssd_reference, inputs, reset, grads)
        assert_close(run(ssd, inputs, reset, grads, backend=backend), oracle, 1e-12)


@every_backend
def test_packed_with_resets_equals_separate_sequences(backend):
    lengths = [3, 61, 1, 35]
    (x, dt, A, B, C, D, state), _, grads = make(sum(lengths), batch=1)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    reset = torch.zeros(1, sum(lengths), dtype=torch.bool)
    reset[0, starts[1:]] = True
    packed = run(ssd, (x, dt, A, B, C, D, state), reset, grads, backend=backend)
    parts = []
    for i, piece in enumerate(zip(*(t.split(lengths, 1) for t in (x, dt, B, C)), strict=True)):
        first = state if i == 0 else torch.zeros_like(state)
        dfinal = grads[1] * (i == len(lengths) - 1)
        inputs = *piece[:2], A, *piece[2:], D, first
        dy = grads[0].split(lengths, 1)[i]
        parts.append(run(ssd, inputs, None, (dy, dfinal), backend=backend))
    y, final, dx, ddt, dA, dB, dC, dD, dstate = zip(*parts, strict=True)
    tokens = [torch.cat(pieces, dim=1) for pieces in (y, dx, ddt, dB, dC)]
    separate = tokens[0], final[-1], *tokens[1:3], sum(dA), *tokens[3:], sum(dD), dstate[0]
    assert_close(packed, separate, 1e-12)


@pytest.mark.parametrize("sizes", [[40, 1, 89], [64, 66], [1] * 130])
@every_backend
def test_whole_equals_pieces_and_steps(backend, sizes):
    def in_pieces(x, dt, A, B, C, D, state, reset):
        out = []
        tensors = [t.split(sizes, 1) for t in (x, dt, B, C, reset)]
        for x, dt, B, C, reset in zip(*tensors, strict=True):
            y, state = ssd(x, dt, A, B, C, D, state, reset, backend=backend)
            out.append(y)
        return torch.cat(out, dim=1), state

    inputs = make(130)
    assert_close(run(in_pieces, *inputs), run(ssd, *inputs, backend=backend), 1e-12)


@every_backend
def test_gradcheck(backend):
    for steps, fast in ((5, False), (67, True)):
        inputs, reset, _ = make(steps, p=3, n=2, regime="trained", batch=1)
        reset[:, steps // 2] = True
        leaves = [tensor.double().requires_grad_() for tensor in inputs]
        torch.manual_seed(0)  # fast mode draws directions
        assert torch.autograd.gradcheck(
            lambda *args, reset=reset: ssd(*args, reset, backend=backend), leaves, fast_mode=fast
        )


@pytest.mark.tiny
@every_backend
def test_runs_repeat_bitwise_and_read_no_uninitialised_memory(backend):
    inputs = make(150)
    first = run(ssd, *inputs, torch.float32, backend=backend)
    with poisoned_memory():
        again = run(ssd, *inputs, torch.float32, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.tiny
@every_backend
def test_inputs_may_be_slices_of_wider_tensors(backend):
    """A mixer cuts x, B and C out of one projection."""
    inputs, reset, grads = make(70, groups=1)
    expected = run(ssd, inputs, reset, grads, backend=backend)

    def sliced(*args):
        wide = [torch.cat((t, torch.ones_like(t)), dim=-1)[..., : t.shape[-1]] for t in args[:-1]]
        return ssd(*wide, args[-1], backend=backend)

    assert_close(run(sliced, inputs, reset, grads), expected, 1e-12)


@pytest.mark.tiny
@every_backend
def test_bf16_inputs_give_bf16_y_and_fp32_state(backend):
    inputs, reset, _ = make(150)
    *tensors, state = (tensor.bfloat16() for tensor in inputs)
    y, final = ssd(*tensors, state.float(), reset, backend=backend)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    exact = ssd_reference(*(tensor.double() for tensor in tensors), state.double(), reset)
    assert relative_rms(y, exact[0]) <= 2**-8  # rounded once
    assert relative_rms(final, exact[1]) <= 1e-5


@pytest.mark.parametrize("backend", [name for name in ANYWHERE if name != "reference"])
def test_autocast_changes_nothing(backend):
    inputs = make(70)
    expected = run(ssd, *inputs, torch.float32, backend=backend)
    tensors, reset, _ = make(1)
    step = ssd(*tensors, reset, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(run(ssd, *inputs, torch.float32, backend=backend), expected, 1e-6)
        torch.testing.assert_close(ssd(*tensors, reset, backend=backend), step)


@pytest.mark.tiny
@every_backend
def test_d_and_state_may_be_missing(backend):
    (*tensors, D, state), reset, _ = make(70)
    y, final = ssd(*tensors, None, None, reset, backend=backend)
    zeros = ssd(*tensors, torch.zeros_like(D), torch.zeros_like(state), reset, backend=backend)
    assert torch.equal(y, zeros[0])
    assert torch.equal(final, zeros[1])


@pytest.mark.tiny
def test_misfits_are_named():
    x, dt, A, B, C, D, state = make(4)[0]
    good = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "state": state, "reset": None}
    for name in ("dt", "A", "C", "D", "state"):
        with pytest.raises(UserError, match=f"ssd: {name} has shape"):
            ssd(**{**good, name: good[name][..., :-1]})
    with pytest.raises(UserError, match="ssd: reset has shape"):
        ssd(**{**good, "reset": torch.zeros(2, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match="4 heads cannot share 3 groups"):
        ssd(**{**good, "B": B.new_zeros(2, 4, 3, 3)})
    with pytest.raises(UserError, match="unknown ssd backend 'chunkd'; did you mean chunked"):
        ssd(**good, backend="chunkd")


@pytest.mark.slow
@every_backend
def test_compiles_without_a_graph_break(backend):
    if backend == "reference":
        pytest.skip("a loop over tokens is not worth compiling")
    inputs = make(70, p=8, n=8)
    compiled = torch.compile(ssd, fullgraph=True)
    expected = run(ssd, *inputs, torch.float32, backend=backend)
    assert_close(run(compiled, *inputs, torch.float32, backend=backend), expected, 1e-5)
