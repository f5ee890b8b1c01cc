"""WKV6's kernels: on a GPU (`-m gpu`), elsewhere in Triton's interpreter on small shapes."""

from __future__ import annotations

import kernel_laws
import pytest
import scans
import torch

from groundthink.errors import UserError
from groundthink.ops import wkv6
from groundthink.ops.testing import REGIMES, log_decays, poisoned_memory, relative_rms

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("interpreter")
NAMES = ("y", "final state", "dr", "dk", "dv", "dw", "du", "dstate")
GPU = torch.cuda.is_available()
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.float16: (4e-3, 1e-2), torch.bfloat16: (4e-3, 1e-2)}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request):
    if (request.param == "cuda") != GPU:
        pytest.skip("the kernels run on a GPU, and in the interpreter only where there is none")
    return request.param


def make(steps, device, k=16, v=16, batch=1, heads=2, regime="initial", resets=True):
    """fp32 inputs, a reset mask, and gradients for y and the final state."""
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    keys = batch, steps, heads, k
    log_w = log_decays(regime, keys, generator).float()
    values, state = normal(batch, steps, heads, v), normal(batch, heads, k, v)
    inputs = normal(*keys), normal(*keys), values, log_w, normal(heads, k), state
    reset = torch.rand(batch, steps, generator=generator) < 0.03 if resets else None
    grads = normal(batch, steps, heads, v), normal(batch, heads, k, v)
    inputs = [tensor.to(device) for tensor in inputs]
    return inputs, None if reset is None else reset.to(device), [g.to(device) for g in grads]


def raw_wkv6(r, k, v, w_raw, u, state, reset, **kwargs):
    return wkv6(r, k, v, None, u, state, reset, w_raw=w_raw, **kwargs)


def run(inputs, reset, grads, dtype=torch.float32, op=wkv6):
    """Outputs and gradients; r, k, v and the gradient of y are in `dtype`, the rest in fp32."""
    half = [tensor.to(dtype) if i < 3 else tensor for i, tensor in enumerate(inputs)]
    leaves = [tensor.detach().requires_grad_() for tensor in half]
    outputs = op(*leaves, reset, backend="triton")
    grads = [grad.to(out.dtype) for grad, out in zip(grads, outputs, strict=True)]
    return *outputs, *torch.autograd.grad(outputs, leaves, grads)


def exact(inputs, reset, grads, dtype=torch.float32, op=wkv6):
    """The same in fp64, from the inputs rounded alike."""
    rounded = [t.to(dtype).double() if i < 3 else t for i, t in enumerate(inputs)]
    grads = [grads[0].to(dtype), grads[1]]
    return scans.run(op, rounded, reset, grads, backend="chunked" if GPU else "reference")


def assert_close(results, oracle, dtype=torch.float32):
    forward, gradient = BOUNDS[dtype]
    errors = {
        name: relative_rms(value, expected)
        for name, value, expected in zip(NAMES, results, oracle, strict=True)
    }
    everything = list(errors.values())
    kernel_laws.note("wkv6", dtype, everything[:2], everything[2:])
    good = [error <= (forward if i < 2 else gradient) for i, error in enumerate(everything)]
    assert all(good), errors


def check(case, dtype=torch.float32, op=wkv6):
    assert_close(run(*case, dtype, op), exact(*case, dtype, op), dtype)


@pytest.mark.parametrize("regime", REGIMES)
def test_values_and_gradients_equal_the_fp64_recurrence(device, regime):
    for steps in (1, 33) if device == "cpu" else (1, 15, 16, 17, 63, 64, 65, 1000):
        check(make(steps, device, regime=regime))


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=gpu)])
@pytest.mark.parametrize("regime", REGIMES)
def test_half_precision_inputs(device, regime, dtype):
    """Chunks are longer than in fp32."""
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter multiplies bf16 wrongly")
    for steps in (70,) if device == "cpu" else (1, 63, 64, 65, 1000):
        check(make(steps, device, regime=regime), dtype)


@pytest.mark.parametrize("regime", ["trained", "mixed"])
def test_raw_decays(device, regime):
    (r, k, v, log_w, u, state), reset, grads = make(20, device, regime=regime)
    w_raw = torch.log(-log_w)
    check(((r, k, v, w_raw, u, state), reset, grads), op=raw_wkv6)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=gpu)])
def test_a_raw_decay_that_wipes_among_mild_ones(device, dtype):
    """Its gradient is next to nothing times a large decay: what should cancel has to."""
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter multiplies bf16 wrongly")
    inputs, _, grads = make(32, device, k=32, v=32, heads=1, resets=False)
    decays = torch.full_like(inputs[3], -0.01)
    decays[:, 13] = -8 if dtype == torch.float16 else -50
    check(([*inputs[:3], torch.log(-decays), *inputs[4:]], None, grads), dtype, raw_wkv6)


@pytest.mark.parametrize("k, v", [(5, 3), (24, 40), (33, 1)])
def test_any_head_size(device, k, v):
    check(make(20, device, k=k, v=v, heads=3, regime="mixed"))


@pytest.mark.parametrize("log_decay", [0.0, -1e-7, -50.0, -1e9])
def test_decays_at_and_beyond_the_edge(device, log_decay):
    """One token in eight at the edge among mild ones: neither may drown or upset the other."""
    (r, k, v, log_w, u, state), reset, grads = make(40, device, regime="trained")
    log_w[:, ::8] = log_decay
    check(((r, k, v, log_w, u, state), reset, grads))


@pytest.mark.parametrize("regime", ["initial", "strong"])
def test_resets_at_any_token(device, regime):
    inputs, _, grads = make(40, device, batch=3, heads=1, regime=regime)
    reset = torch.zeros(3, 40, dtype=torch.bool, device=device)
    reset[0, [0, 15, 16, 31, 39]] = reset[1, [5, 6, 20]] = reset[2] = True
    check((inputs, reset, grads))


@pytest.mark.slow
def test_segments_give_what_the_whole_gives(device, monkeypatch):
    from groundthink.ops.wkv6 import launch

    case = make(100, device, k=5, resets=False)
    reset = torch.zeros(1, 100, dtype=torch.bool, device=device)
    reset[:, 40] = True
    monkeypatch.setattr(launch, "SHORTEST", 1)
    for mask in (None, reset):
        check((case[0], mask, case[2]))


def test_whole_equals_pieces_and_steps(device):
    def in_pieces(r, k, v, log_w, u, state, reset, backend):
        out = []
        tensors = (t.split(sizes, 1) for t in (r, k, v, log_w, reset))
        for r, k, v, log_w, reset in zip(*tensors, strict=True):
            y, state = wkv6(r, k, v, log_w, u, state, reset, backend=backend)
            out.append(y)
        return torch.cat(out, dim=1), state

    for sizes in ([17, 1, 22], [1] * 4):
        case = make(sum(sizes), device)
        assert_close(run(*case, op=in_pieces), exact(*case))


@pytest.mark.parametrize("raw", [False, True])
def test_steps_without_a_gradient(device, raw):
    inputs, reset, _ = make(6, device, batch=2, heads=3, k=20, v=12)
    r, k, v, log_w, u, state = inputs
    reset[0, 3] = True
    y, last = wkv6(*(t.double() for t in inputs), reset, backend="reference")
    out = []
    for i in range(6):
        *now, w, cut = (t[:, i : i + 1] for t in (r, k, v, log_w, reset))
        decay = (None, torch.log(-w)) if raw else (w, None)
        step, state = wkv6(*now, decay[0], u, state, cut, w_raw=decay[1], backend="triton")
        out.append(step)
    assert relative_rms(torch.cat(out, 1), y) <= 1e-6
    assert relative_rms(state, last) <= 1e-6


def test_runs_repeat_bitwise_and_read_no_uninitialised_memory(device, monkeypatch):
    from groundthink.ops.wkv6 import launch

    monkeypatch.setattr(launch, "SHORTEST", 2)
    for regime in ("initial", "strong"):
        case = make(70, device, k=5, heads=1, regime=regime)
        first = run(*case)
        with poisoned_memory():
            again = run(*case)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_state_or_a_gradient_may_be_missing(device):
    (*tensors, _), _, _ = make(20, device)
    for used in (0, 1):  # y alone, the final state alone
        leaves = [t.detach().requires_grad_() for t in tensors]
        doubles = [t.detach().double().requires_grad_() for t in tensors]
        grads, oracle = (
            torch.autograd.grad(
                wkv6(*inputs, backend=backend)[used].sum(), inputs, materialize_grads=True
            )
            for inputs, backend in ((leaves, "triton"), (doubles, "reference"))
        )
        for name, grad, expected in zip(NAMES[2:], grads, oracle, strict=False):
            assert relative_rms(grad, expected) <= 1e-5, name


def test_an_empty_batch(device):
    inputs, _, _ = make(5, device)
    leaves = [t[:0].requires_grad_() if t.dim() == 4 else t.requires_grad_() for t in inputs]
    y, final = wkv6(*leaves, backend="triton")
    assert y.shape == (0, 5, 2, 16) and final.shape == (0, 2, 16, 16)
    grads = torch.autograd.grad(y.sum() + final.sum(), leaves)
    assert all(g.shape == t.shape for g, t in zip(grads, leaves, strict=True))
    assert not grads[4].any()


def test_strided_inputs(device):
    case = make(20, device)
    wide = [torch.cat([t, t], -1).transpose(1, 2).contiguous().transpose(1, 2) for t in case[0][:4]]
    strided = [t[..., : t.shape[-1] // 2] for t in wide]
    results = run([*strided, *case[0][4:]], *case[1:])
    assert all(torch.equal(a, b) for a, b in zip(results, run(*case), strict=True))


def test_autocast_changes_nothing(device):
    def under_autocast(*args, backend):
        with torch.autocast(device, torch.bfloat16):
            return wkv6(*args, backend=backend)

    case = make(20, device)
    results = run(*case), run(*case, op=under_autocast)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_the_kernels_cannot_take_is_said(device):
    inputs, _, _ = make(4, device)
    with pytest.raises(UserError, match="takes no fp64"):
        wkv6(*(t.double() for t in inputs), backend="triton")
    with pytest.raises(UserError, match="heads up to 128, not 130"):
        wkv6(*make(4, device, k=130)[0], backend="triton")
    y, _ = wkv6(*make(4, device, k=130)[0])
    assert y.isfinite().all()


@gpu
@needs_gpu
@pytest.mark.parametrize("sizes", [(32, 32), (64, 64), (24, 64), (64, 32), (128, 128), (100, 20)])
@pytest.mark.parametrize("raw", [False, True])
def test_every_form_of_the_kernels(sizes, raw):
    """Each is compiled on its own, and compilers have got single ones wrong."""
    for resets, regime in ((False, "initial"), (True, "initial"), (False, "mixed")):
        case = make(500, "cuda", *sizes, batch=2, regime=regime, resets=resets)
        op = wkv6
        if raw:
            case[0][3], op = torch.log(-case[0][3]), raw_wkv6
        check(case, torch.bfloat16, op)
        first, again = run(*case, torch.bfloat16, op), run(*case, torch.bfloat16, op)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@gpu
@needs_gpu
def test_long_sequences():
    for shape in ({"steps": 65536, "heads": 1}, {"steps": 4096, "heads": 2, "batch": 2}):
        case = make(**shape, device="cuda", k=64, v=64)
        for dtype in (torch.float32, torch.bfloat16):
            check(case, dtype)


@gpu
@needs_gpu
def test_compiled_and_captured_calls_equal_eager_ones():
    case = make(300, "cuda", k=64, v=64)
    eager = run(*case, torch.bfloat16)
    compiled = torch.compile(wkv6, fullgraph=True)
    results = run(*case, torch.bfloat16, op=compiled)
    assert all(torch.equal(a, b) for a, b in zip(eager, results, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*case, torch.bfloat16)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))


@gpu
@needs_gpu
def test_activation_checkpointing():
    from torch.utils.checkpoint import checkpoint

    def again(*args, backend):
        return checkpoint(lambda *a: wkv6(*a, backend=backend), *args, use_reentrant=False)

    case = make(100, "cuda")
    assert all(torch.equal(a, b) for a, b in zip(run(*case), run(*case, op=again), strict=True))
