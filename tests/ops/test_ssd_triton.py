"""SSD's kernels: on a GPU (`-m gpu`), elsewhere in Triton's interpreter on small shapes."""

from __future__ import annotations

import kernel_laws
import pytest
import scans
import torch

from groundthink.errors import UserError
from groundthink.ops import ssd
from groundthink.ops.ssd import BACKENDS
from groundthink.ops.ssd.reference import ssd_reference
from groundthink.ops.testing import REGIMES, log_decays, poisoned_memory, relative_rms

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("interpreter")
NAMES = ("y", "final state", "dx", "ddt", "dA", "dB", "dC", "dD", "dstate")
GPU = torch.cuda.is_available()
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
BOUNDS = {torch.float32: (1e-5, 1e-4), torch.float16: (4e-3, 1e-2), torch.bfloat16: (4e-3, 1e-2)}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request):
    if (request.param == "cuda") != GPU:
        pytest.skip("the kernels run on a GPU, and in the interpreter only where there is none")
    return request.param


def make(steps, device, batch=1, heads=2, p=16, n=16, groups=1, regime="initial", resets=True):
    """fp32 inputs, a reset mask, and gradients for y and the final state."""
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    A = -torch.exp(2 * torch.rand(heads, generator=generator))
    dt = (log_decays(regime, (batch, steps, heads), generator) / A).float()
    B, C = normal(batch, steps, groups, n), normal(batch, steps, groups, n)
    x, D, state = normal(batch, steps, heads, p), normal(heads), normal(batch, heads, p, n)
    reset = torch.rand(batch, steps, generator=generator) < 0.03 if resets else None
    grads = normal(batch, steps, heads, p), normal(batch, heads, p, n)
    inputs = [tensor.to(device) for tensor in (x, dt, A, B, C, D, state)]
    return inputs, None if reset is None else reset.to(device), [g.to(device) for g in grads]


def run(inputs, reset, grads, dtype=torch.float32, op=ssd):
    """Outputs and gradients; x, B, C and the gradient of y are in `dtype`, the rest in fp32."""
    half = [tensor.to(dtype) if i in (0, 3, 4) else tensor for i, tensor in enumerate(inputs)]
    leaves = [tensor.detach().requires_grad_() for tensor in half]
    outputs = op(*leaves, reset, backend="triton")
    grads = [grad.to(out.dtype) for grad, out in zip(grads, outputs, strict=True)]
    return *outputs, *torch.autograd.grad(outputs, leaves, grads)


def exact(inputs, reset, grads, dtype=torch.float32):
    """The same in fp64, from the inputs rounded alike."""
    rounded = [t.to(dtype).double() if i in (0, 3, 4) else t for i, t in enumerate(inputs)]
    grads = [grads[0].to(dtype), grads[1]]
    backend = "chunked" if GPU else "reference"
    return scans.run(ssd, rounded, reset, grads, backend=backend)


def assert_close(results, oracle, dtype=torch.float32):
    forward, gradient = BOUNDS[dtype]
    errors = {
        name: relative_rms(value, expected)
        for name, value, expected in zip(NAMES, results, oracle, strict=True)
    }
    everything = list(errors.values())
    kernel_laws.note("ssd", dtype, everything[:2], everything[2:])
    good = [error <= (forward if i < 2 else gradient) for i, error in enumerate(everything)]
    assert all(good), errors


def check(case, dtype=torch.float32):
    assert_close(run(*case, dtype), exact(*case, dtype), dtype)


@pytest.mark.parametrize("regime", REGIMES)
def test_values_and_gradients_equal_the_fp64_recurrence(device, regime):
    for steps in (1, 15, 33) if device == "cpu" else (1, 15, 16, 17, 63, 64, 65, 1000):
        check(make(steps, device, regime=regime))


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=gpu)])
def test_half_precision_inputs(device, dtype):
    """Chunks are longer than in fp32."""
    if dtype == torch.bfloat16 and device == "cpu":
        pytest.skip("the interpreter multiplies bf16 wrongly")
    for regime in REGIMES:
        check(make(70 if device == "cpu" else 1000, device, regime=regime), dtype)


@pytest.mark.parametrize("p, n, heads, groups", [(5, 3, 4, 2), (24, 40, 2, 1), (1, 33, 3, 3)])
def test_any_head_size_state_size_and_groups(device, p, n, heads, groups):
    check(make(37, device, p=p, n=n, heads=heads, groups=groups, regime="mixed"))


@pytest.mark.parametrize("log_decay", [0.0, -1e-7, -50.0, -1e9])
def test_decays_at_and_beyond_the_edge(device, log_decay):
    """One token in eight at the edge among mild ones: neither may drown or upset the other."""
    (x, dt, A, *rest), reset, grads = make(40, device, regime="trained")
    dt[:, ::8] = log_decay / A
    check(((x, dt, A, *rest), reset, grads))


def test_resets_at_any_token(device):
    inputs, _, grads = make(40, device, batch=3)
    reset = torch.zeros(3, 40, dtype=torch.bool, device=device)
    reset[0, 0] = reset[0, [15, 16, 31, 39]] = reset[1, [5, 6, 20]] = reset[2] = True
    check((inputs, reset, grads))


@pytest.mark.slow
def test_segments_give_what_the_whole_gives(device, monkeypatch):
    from groundthink.ops.ssd import launch

    case = make(100, device, p=5, resets=False)
    reset = torch.zeros(1, 100, dtype=torch.bool, device=device)
    reset[:, 40] = True
    monkeypatch.setattr(launch, "SHORTEST", 1)
    for mask in (None, reset):
        check((case[0], mask, case[2]))


def test_whole_equals_pieces_and_steps(device):
    def in_pieces(x, dt, A, B, C, D, state, reset, backend):
        out = []
        tensors = (t.split(sizes, 1) for t in (x, dt, B, C, reset))
        for x, dt, B, C, reset in zip(*tensors, strict=True):
            y, state = ssd(x, dt, A, B, C, D, state, reset, backend=backend)
            out.append(y)
        return torch.cat(out, dim=1), state

    for sizes in ([17, 1, 22], [1] * 5):
        case = make(sum(sizes), device)
        assert_close(run(*case, op=in_pieces), run(*case))


def test_steps_without_a_gradient(device):
    inputs, reset, _ = make(6, device, batch=2, heads=4, p=20, n=12, groups=2)
    x, dt, A, B, C, D, state = inputs
    reset[0, 3] = True
    y, last = ssd_reference(*(t.double() for t in inputs), reset)
    out = []
    for i in range(6):
        now = [t[:, i : i + 1] for t in (x, dt, B, C, reset)]
        step, state = ssd(*now[:2], A, *now[2:4], D, state, now[4], backend="triton")
        out.append(step)
    assert relative_rms(torch.cat(out, 1), y) <= 1e-6
    assert relative_rms(state, last) <= 1e-6
    first, state = ssd(x[:, :1], dt[:, :1], A, B[:, :1], C[:, :1], backend="triton")
    expected = ssd(x[:, :1], dt[:, :1], A, B[:, :1], C[:, :1], backend="reference")
    torch.testing.assert_close((first, state), expected)


def test_runs_repeat_bitwise_and_read_no_uninitialised_memory(device):
    case = make(50, device, p=5, n=7)
    first = run(*case)
    with poisoned_memory():
        again = run(*case)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_slices_of_wider_tensors(device):
    """A mixer cuts x, B and C out of one projection."""
    case = make(40, device)

    def sliced(x, dt, A, B, C, D, state, reset, backend):
        wide = [torch.cat((t, t + 1), dim=-1)[..., : t.shape[-1]] for t in (x, dt, B, C)]
        every_other = torch.stack((D, D), dim=-1)[..., 0]
        turned = state.mT.contiguous().mT
        x, dt, B, C = wide
        return ssd(x, dt, A, B, C, every_other, turned, reset, backend=backend)

    assert_close(run(*case, op=sliced), run(*case))


def test_nothing_to_do_and_nothing_given(device):
    inputs, reset, _ = make(20, device, batch=2)
    x, dt, A, B, C, D, state = inputs
    y, last = ssd(x, dt, A, B, C, backend="triton")
    expected = ssd(x, dt, A, B, C, backend="reference")
    torch.testing.assert_close((y, last), expected, rtol=1e-4, atol=1e-4)
    nobody = [t[:0].requires_grad_() for t in (x, dt, B, C)]
    y, last = ssd(*nobody[:2], A, *nobody[2:], D, state[:0], reset[:0], backend="triton")
    assert (y.shape, last.shape) == (x[:0].shape, state[:0].shape)
    assert torch.autograd.grad(y.sum() + last.sum(), nobody[0])[0].shape == x[:0].shape


def test_gradient_through_one_output_alone(device):
    inputs, reset, grads = make(20, device)
    x = inputs[0].requires_grad_()
    for i in (0, 1):
        mine = ssd(*inputs, reset, backend="triton")[i]
        gold = ssd(*inputs, reset, backend="reference")[i]
        mine, gold = (torch.autograd.grad(out, x, grads[i])[0] for out in (mine, gold))
        assert relative_rms(mine, gold) <= 1e-5


@pytest.mark.tiny
def test_what_the_kernels_do_not_take_is_said(device):
    inputs, reset, _ = make(4, device, p=4, n=4)
    x, dt, A, B, C, D, state = inputs
    doubles = [t.double() for t in inputs]
    with pytest.raises(UserError, match="fp64"):
        ssd(*doubles, reset, backend="triton")
    wide = [t.repeat_interleave(40, dim=-1) for t in (x, state.mT)]
    with pytest.raises(UserError, match="sizes up to 128, not 160"):
        ssd(wide[0], dt, A, B, C, D, wide[1].mT, reset, backend="triton")
    for backend in BACKENDS:
        if backend != "triton":
            ssd(*doubles, reset, backend=backend)
    ssd(*doubles, reset)


@gpu
@needs_gpu
@pytest.mark.parametrize(
    "p, n, dtype",
    [(64, 64, torch.bfloat16), (64, 128, torch.bfloat16), (128, 128, torch.float32)],
)
def test_large_shapes(p, n, dtype):
    for batch, steps, heads in ((4, 256, 4), (2, 2048, 6), (1, 65536, 2)):
        for regime in ("initial", "mixed"):
            resets = regime == "mixed"
            case = make(steps, "cuda", batch, heads, p, n, regime=regime, resets=resets)
            check(case, dtype)
            first, again = run(*case, dtype), run(*case, dtype)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@gpu
@needs_gpu
@pytest.mark.parametrize("p, n", [(32, 128), (32, 32), (16, 32), (64, 16)])
def test_narrow_heads_and_states(p, n):
    for resets in (True, False):
        case = make(500, "cuda", 2, 4, p, n, regime="mixed", resets=resets)
        check(case, torch.bfloat16)
        first, again = run(*case, torch.bfloat16), run(*case, torch.bfloat16)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@gpu
@needs_gpu
def test_compiled_and_captured_runs_equal_eager_ones():
    inputs, reset, grads = make(300, "cuda", batch=2, heads=4, p=64, n=64)
    eager = run(inputs, reset, grads, torch.bfloat16)
    compiled = run(inputs, reset, grads, torch.bfloat16, torch.compile(ssd, fullgraph=True))
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(inputs, reset, grads, torch.bfloat16)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(eager, captured, strict=True))
