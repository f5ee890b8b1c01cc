"""WKV6: every backend against the recurrence in fp64, and the laws of a stateful scan."""

from __future__ import annotations

from functools import lru_cache

import pytest
import scans
import torch
from scans import run

from groundthink.errors import UserError
from groundthink.ops import wkv6
from groundthink.ops.testing import REGIMES, log_decays, poisoned_memory, relative_rms
from groundthink.ops.wkv6 import BACKENDS
from groundthink.ops.wkv6.reference import wkv6_reference

NAMES = ("y", "final state", "dr", "dk", "dv", "dlog_w", "du", "dstate")
HEADS = 2
PLAIN = [b for b in BACKENDS if b != "triton"]  # whose tests are in test_wkv6_triton
every_backend = pytest.mark.parametrize("backend", PLAIN)
fast_backends = pytest.mark.parametrize("backend", [b for b in PLAIN if b != "reference"])


def make(steps, k=5, v=3, regime="initial", batch=2, resets=True):
    """fp32 inputs, a reset mask, and gradients for y and the final state."""
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    keys = batch, steps, HEADS, k
    log_w = log_decays(regime, keys, generator).float()
    values, state = normal(batch, steps, HEADS, v), normal(batch, HEADS, k, v)
    inputs = normal(*keys), normal(*keys), values, log_w, normal(HEADS, k), state
    reset = torch.rand(batch, steps, generator=generator) < 0.03 if resets else None
    return inputs, reset, (normal(batch, steps, HEADS, v), normal(batch, HEADS, k, v))


def assert_close(results, oracle, bound):
    scans.assert_close(results, oracle, bound, NAMES)


@lru_cache
def case(steps, regime, **kwargs):
    inputs = make(steps, regime=regime, **kwargs)
    return inputs, run(wkv6_reference, *inputs)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 63, 64, 65, 1000])
@every_backend
def test_values_and_gradients_equal_the_fp64_recurrence(backend, steps, regime):
    inputs, oracle = case(steps, regime)
    assert_close(run(wkv6, *inputs, torch.float32, backend=backend), oracle, 1e-5)
    if backend != "reference":
        assert_close(run(wkv6, *inputs, backend=backend), oracle, 1e-12)


@pytest.mark.parametrize("k, v", [(64, 64), (7, 16), (1, 1), (33, 5)])
@every_backend
def test_any_head_size(backend, k, v):
    for regime in ("trained", "mixed"):
        inputs, oracle = case(130, regime, k=k, v=v)
        assert_close(run(wkv6, *inputs, torch.float32, backend=backend), oracle, 1e-5)


@pytest.mark.parametrize("log_decay", [0.0, -1e-7, -3.0, -50.0, -1e9])
@every_backend
def test_decays_at_and_beyond_the_edge(backend, log_decay):
    """One token in eight at the edge among mild ones: neither may drown or upset the other."""
    (r, k, v, log_w, u, state), reset, grads = make(200, regime="trained")
    log_w[:, ::8] = log_decay
    inputs = r, k, v, log_w, u, state
    oracle = run(wkv6_reference, inputs, reset, grads)
    assert_close(run(wkv6, inputs, reset, grads, torch.float32, backend=backend), oracle, 1e-5)


@every_backend
def test_resets_at_any_token(backend):
    """At the first and last tokens of sequence and chunks, in a row, and at every token."""
    for regime in ("initial", "strong"):
        inputs, _, grads = make(130, regime=regime)
        for at in ([0], [129], [63, 64, 65], [31, 32, 33], [1, 2, 3, 100], list(range(130))):
            reset = torch.zeros(2, 130, dtype=torch.bool)
            reset[1, at] = True
            oracle = run(wkv6_reference, inputs, reset, grads)
            assert_close(run(wkv6, inputs, reset, grads, backend=backend), oracle, 1e-12)


@every_backend
def test_packed_with_resets_equals_separate_sequences(backend):
    lengths = [3, 61, 1, 35]
    (r, k, v, log_w, u, state), _, grads = make(sum(lengths), batch=1)
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    reset = torch.zeros(1, sum(lengths), dtype=torch.bool)
    reset[0, starts[1:]] = True
    packed = run(wkv6, (r, k, v, log_w, u, state), reset, grads, backend=backend)
    parts = []
    for i, piece in enumerate(zip(*(t.split(lengths, 1) for t in (r, k, v, log_w)), strict=True)):
        first = state if i == 0 else torch.zeros_like(state)
        dy, dfinal = grads[0].split(lengths, 1)[i], grads[1] * (i == len(lengths) - 1)
        parts.append(run(wkv6, (*piece, u, first), None, (dy, dfinal), backend=backend))
    y, final, *tokens, du, dstate = zip(*parts, strict=True)
    tokens = [torch.cat(pieces, dim=1) for pieces in tokens]
    separate = torch.cat(y, dim=1), final[-1], *tokens, sum(du), dstate[0]
    assert_close(packed, separate, 1e-12)


@pytest.mark.parametrize("sizes", [[40, 1, 89], [64, 66], [1] * 130])
@every_backend
def test_whole_equals_pieces_and_steps(backend, sizes):
    def in_pieces(r, k, v, log_w, u, state, reset):
        out = []
        for *piece, cut in zip(*(t.split(sizes, 1) for t in (r, k, v, log_w, reset)), strict=True):
            y, state = wkv6(*piece, u, state, cut, backend=backend)
            out.append(y)
        return torch.cat(out, dim=1), state

    inputs = make(130)
    assert_close(run(in_pieces, *inputs), run(wkv6, *inputs, backend=backend), 1e-12)


@every_backend
def test_gradcheck(backend):
    for steps, fast in ((5, False), (67, True)):
        inputs, reset, _ = make(steps, k=3, v=2, regime="trained", batch=1)
        reset[:, steps // 2] = True
        leaves = [tensor.double().requires_grad_() for tensor in inputs]
        torch.manual_seed(0)  # fast mode draws directions
        assert torch.autograd.gradcheck(
            lambda *args, reset=reset: wkv6(*args, reset, backend=backend), leaves, fast_mode=fast
        )


@pytest.mark.tiny
@every_backend
def test_runs_repeat_bitwise_and_read_no_uninitialised_memory(backend):
    for regime in ("initial", "strong"):
        inputs = make(150, regime=regime)
        first = run(wkv6, *inputs, torch.float32, backend=backend)
        with poisoned_memory():
            again = run(wkv6, *inputs, torch.float32, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.tiny
@every_backend
def test_bf16_inputs_give_bf16_y_and_fp32_state(backend):
    inputs, reset, _ = make(150)
    *tensors, state = (tensor.bfloat16() for tensor in inputs)
    y, final = wkv6(*tensors, state.float(), reset, backend=backend)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    exact = wkv6_reference(*(tensor.double() for tensor in tensors), state.double(), reset)
    assert relative_rms(y, exact[0]) <= 2**-8  # rounded once
    assert relative_rms(final, exact[1]) <= 1e-5


@pytest.mark.tiny
@pytest.mark.parametrize("steps", [2, 11, 32])
@every_backend
def test_one_sequence_cut_from_a_wider_tensor(backend, steps):
    """A prompt of one row: folding it into chunks moves nothing, so the strides stay."""
    for regime in ("initial", "strong"):
        inputs, _, grads = make(steps, regime=regime, batch=1)
        expected = run(wkv6_reference, inputs, None, grads)
        assert_close(run(wkv6, inputs, None, grads, backend=backend), expected, 1e-12)


@fast_backends
def test_autocast_changes_nothing(backend):
    def under_autocast(*args):
        with torch.autocast("cpu", torch.bfloat16):
            return wkv6(*args, backend=backend)

    for steps in (1, 70):
        inputs = make(steps)
        expected = run(wkv6, *inputs, torch.float32, backend=backend)
        assert_close(run(under_autocast, *inputs, torch.float32), expected, 1e-6)


@pytest.mark.tiny
@every_backend
def test_the_state_may_be_missing(backend):
    (*tensors, state), reset, _ = make(70)
    y, final = wkv6(*tensors, None, reset, backend=backend)
    zeros = wkv6(*tensors, torch.zeros_like(state), reset, backend=backend)
    assert torch.equal(y, zeros[0]) and torch.equal(final, zeros[1])


@pytest.mark.tiny
def test_misfits_are_named():
    r, k, v, log_w, u, state = make(4)[0]
    good = {"r": r, "k": k, "v": v, "log_w": log_w, "u": u, "state": state, "reset": None}
    for name in ("k", "log_w", "u", "state"):
        with pytest.raises(UserError, match=f"wkv6: {name} has shape"):
            wkv6(**{**good, name: good[name][..., :-1]})
    with pytest.raises(UserError, match="wkv6: v has shape"):
        wkv6(**{**good, "v": v[:, :-1]})
    with pytest.raises(UserError, match="wkv6: reset has shape"):
        wkv6(**{**good, "reset": torch.zeros(2, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match="unknown wkv6 backend 'chunkd'; did you mean chunked"):
        wkv6(**good, backend="chunkd")


@pytest.mark.slow
@fast_backends
@pytest.mark.parametrize("regime", ["initial", "mixed"])
def test_compiles_without_a_graph_break(backend, regime):
    inputs = make(70, k=8, v=8, regime=regime)
    compiled = torch.compile(wkv6, fullgraph=True)
    expected = run(wkv6, *inputs, torch.float32, backend=backend)
    assert_close(run(compiled, *inputs, torch.float32, backend=backend), expected, 1e-5)
