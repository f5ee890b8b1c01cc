"""The data-dependent token shift: kernels against fp64, resets, carried tokens."""

from __future__ import annotations

import kernel_laws
import pytest
import torch
from kernel_laws import DEVICE, HALF, normal

from groundthink.errors import UserError
from groundthink.ops.shift import BACKENDS, ddlerp, project, raw_decay

every_backend = pytest.mark.parametrize("backend", BACKENDS["ddlerp"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(batch, steps, size, rank=8, dtype=torch.float32, resets=True):
    x, last = normal(batch, steps, size, dtype=dtype), normal(batch, size)
    w1, w2 = normal(size, 5 * rank, scale=size**-0.5), normal(5, rank, size, scale=rank**-0.5)
    reset = torch.rand(batch, steps, device=DEVICE) < 0.2 if resets else None
    return x, last, normal(size), w1, w2, normal(5, size), reset


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("shape", [(2, 15, 48), (3, 1, 16, 32), (1, 65, 130, 5), (2, 40, 33, 16)])
def test_kernels_equal_the_fp64_reference(shape, resets):
    kernel_laws.equals_the_reference(ddlerp, make(*shape, resets=resets))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("shape", [(2, 9, 48, 32), (5, 33, 32)])
def test_kernels_in_half_precision(shape):
    kernel_laws.equals_the_reference(ddlerp, make(*shape, dtype=HALF), HALF)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("at", [[0], [8], [3, 4, 5], list(range(9))])
def test_resets_at_any_token(at):
    *args, _ = make(2, 9, 16)
    reset = torch.zeros(2, 9, dtype=torch.bool, device=DEVICE)
    reset[1, at] = True
    kernel_laws.equals_the_reference(ddlerp, (*args, reset))


@pytest.mark.usefixtures("interpreter")
@every_backend
def test_nothing_passes_a_reset(backend):
    """NaN before a reset leaves values and input gradients after it alone."""
    x, last, *weights, _ = make(1, 9, 16)
    reset = torch.zeros(1, 9, dtype=torch.bool, device=DEVICE)
    reset[0, 4] = True
    whole = ddlerp(x, last, *weights, reset, backend=backend)
    x = x.clone()
    x[:, :4] = last[:] = torch.nan
    x.requires_grad_()
    x_w, rest, _ = ddlerp(x, last, *weights, reset, backend=backend)
    assert torch.equal(x_w[:, 4:], whole[0][:, 4:])
    assert torch.equal(rest[:, :, 4:], whole[1][:, :, 4:])
    assert x_w[:, :4].isnan().all()
    (dx,) = torch.autograd.grad(rest[:, :, 4:].sum() + x_w[:, 4:].sum(), x)
    assert not dx[:, 4:].isnan().any()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("sizes", [[7, 1, 12], [1] * 20])
@every_backend
def test_whole_equals_pieces_and_steps(backend, sizes):
    x, last, *weights, reset = make(2, 20, 16)
    whole = ddlerp(x, last, *weights, reset, backend=backend)
    parts = []
    for piece, cut in zip(x.split(sizes, 1), reset.split(sizes, 1), strict=True):
        x_w, rest, last = ddlerp(piece, last, *weights, cut, backend=backend)
        parts.append((x_w[None], rest))
    x_w, rest = (torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True))
    for a, b in zip((x_w[0], rest, last), whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_kernels_repeat_bitwise_and_read_no_uninitialised_memory():
    kernel_laws.repeats_bitwise(ddlerp, make(2, 33, 48))


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_an_empty_batch():
    kernel_laws.takes_an_empty_batch(ddlerp, make(0, 4, 16))


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_kernels_compile_without_a_graph_break():
    kernel_laws.compiles(ddlerp, make(2, 5, 16))


@pytest.mark.tiny
@pytest.mark.usefixtures("interpreter")
def test_small_activations_keep_their_digits():
    """tanh near zero: with x = 0 at all but one blend's worth of weight, the product shows it."""
    x, last, maa_x, w1, w2, maa, _ = make(1, 4, 16)
    args = x, last, maa_x, 1e-4 * w1, 1e4 * w2, torch.zeros_like(maa), None
    kernel_laws.equals_the_reference(ddlerp, args)


@pytest.mark.usefixtures("interpreter")
@every_backend
def test_it_is_the_formula_token_by_token(backend):
    x, last, maa_x, w1, w2, maa, reset = make(2, 11, 32)
    x_w, rest, after = ddlerp(x, last, maa_x, w1, w2, maa, reset, backend=backend)
    for b in range(2):
        before = last[b]
        for t, now in enumerate(x[b]):
            back = before * ~reset[b, t] - now
            hidden = torch.tanh((now + back * maa_x) @ w1).chunk(5)
            for q in range(5):
                expected = now + back * (maa[q] + hidden[q] @ w2[q])
                mine = x_w[b, t] if q == 0 else rest[q - 1, b, t]
                torch.testing.assert_close(mine, expected)
            before = now
    assert torch.equal(after, x[:, -1])
    assert after.untyped_storage().nbytes() == after.nbytes  # it keeps nothing else alive


def with_projections(*args, backend):
    """`project` with its four weights after one another and the reset last."""
    *args, k, v, r, g, reset = args
    return project(*args, (k, v, r, g), reset, backend=backend)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("resets", [True, False])
def test_projections_equal_the_fp64_reference(resets):
    *args, reset = make(2, 15, 48, resets=resets)
    weights = (normal(20, 48, scale=48**-0.5) for _ in range(4))
    kernel_laws.equals_the_reference(with_projections, (*args, *weights, reset))


@pytest.mark.tiny
@every_backend
@pytest.mark.usefixtures("interpreter")
def test_projections_are_those_of_the_blends(backend):
    *args, reset = make(2, 5, 16)
    weights = tuple(normal(24, 16) for _ in range(4))
    x_w, *products, last = project(*args, weights, reset, backend=backend)
    blend, rest, expected = ddlerp(*args, reset, backend=backend)
    assert torch.equal(x_w, blend) and torch.equal(last, expected)
    for product, y, weight in zip(products, rest, weights, strict=True):
        torch.testing.assert_close(product, y @ weight.t())


def make_decay(batch, steps, size, width, rank, dtype=torch.float32):
    x = normal(batch, steps, size, dtype=dtype)
    w1, w2 = normal(size, rank, scale=size**-0.5), normal(rank, width, scale=rank**-0.5)
    return x, normal(width), w1, w2


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("shape", [(2, 15, 48, 160, 8), (3, 1, 160, 40, 64), (1, 130, 70, 33, 5)])
def test_raw_decay_equals_the_fp64_reference(shape):
    kernel_laws.equals_the_reference(raw_decay, make_decay(*shape))


@pytest.mark.usefixtures("interpreter")
def test_raw_decay_in_half_precision():
    kernel_laws.equals_the_reference(raw_decay, make_decay(2, 35, 48, 32, 16, HALF), HALF)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.slow
def test_raw_decay_repeats_and_compiles():
    args = make_decay(2, 70, 32, 32, 16, HALF)
    kernel_laws.equals_the_reference(raw_decay, args, HALF)
    kernel_laws.repeats_bitwise(raw_decay, args)
    kernel_laws.compiles(raw_decay, args)
    empty = kernel_laws.differentiable(make_decay(0, 4, 32, 32, 16))
    assert not kernel_laws.step(raw_decay, empty, backend="triton")[1][1].any()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape", [(8, 1, 128, 128, 64), (3, 1000, 192, 192, 64), (16, 1024, 768, 768, 64)]
)
def test_raw_decay_in_bf16_on_the_gpu(shape):
    args = make_decay(*shape, torch.bfloat16)
    kernel_laws.equals_the_reference(raw_decay, args, torch.bfloat16)
    kernel_laws.repeats_bitwise(raw_decay, args)
    kernel_laws.captures(raw_decay, args)
    kernel_laws.compiles(raw_decay, args)


@pytest.mark.tiny
def test_misfits_are_named():
    names = ("x", "last", "maa_x", "w1", "w2", "maa", "reset")
    good = dict(zip(names, make(2, 4, 16), strict=True))
    for name in names[1:]:
        with pytest.raises(UserError, match=f"ddlerp: {name} has shape"):
            ddlerp(**{**good, name: good[name][..., :-1]})
    x, bias, w1, w2 = make_decay(2, 4, 16, 16, 8)
    with pytest.raises(UserError, match="raw_decay: w2 has shape"):
        raw_decay(x, bias, w1, w2[1:])
    weights = [normal(16, 16) for _ in range(4)]
    weights[2] = weights[2][1:]
    with pytest.raises(UserError, match="project: weight of r has shape"):
        project(**good, weights=weights)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [(8, 1, 128), (64, 256, 128, 32), (3, 1000, 96, 32), (16, 1024, 768, 32), (2, 512, 512, 64)],
)
def test_bf16_on_the_gpu(shape):
    args = make(*shape, dtype=torch.bfloat16)
    kernel_laws.equals_the_reference(ddlerp, args, torch.bfloat16)
    kernel_laws.repeats_bitwise(ddlerp, args)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [128, 192])
def test_graph_capture_and_compilation_on_the_gpu(size):
    args = make(4, 64, size, 32, torch.bfloat16)
    kernel_laws.captures(ddlerp, args)
    kernel_laws.compiles(ddlerp, args)
