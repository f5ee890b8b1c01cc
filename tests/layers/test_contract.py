"""The laws that every mixer and channel mixing obeys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from groundthink.layers.attention import Attention
from groundthink.layers.channel_mix import ChannelMix
from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.mlp import MLP
from groundthink.layers.rwkv6 import RWKV6

C = 16
LAYERS = {
    "rwkv6": lambda: RWKV6(C, 8, 1, 3),
    "mamba2": lambda: Mamba2(C, state_size=8, head_size=8),
    "mamba2-groups": lambda: Mamba2(C, state_size=4, head_size=8, groups=2, conv=3),
    "attention": lambda: Attention(C, 2),
    "channel_mix": lambda: ChannelMix(C, 32, 1, 3),
    "mlp": lambda: MLP(C, 32),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
close = {"rtol": 1e-8, "atol": 1e-9}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def noisy(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A layer with noise on its published weights, so that no zero closes a path."""
    layer = LAYERS[name]().to(dtype)
    layer.init_weights()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p), alpha=0.2)
    return layer


def inputs(t: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x [2, T, C], and about three resets a row."""
    return torch.randn(2, t, C, dtype=dtype), torch.rand(2, t) < 3 / (t + 3)


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part for name, part in sorted(state.items()) if part.is_floating_point()}


def in_pieces(layer, x, reset, lengths):
    """Output and final state of consecutive calls on pieces of the given lengths."""
    parts, state = [], None
    for piece, flags in zip(x.split(lengths, 1), reset.split(lengths, 1), strict=True):
        y, state = layer(piece, state, flags)
        parts.append(y)
    return torch.cat(parts, 1), state


def results(layer, x, reset, lengths):
    """Output, final state, and the gradients of a loss that reads both."""
    x = x.clone().requires_grad_()
    y, state = in_pieces(layer, x, reset, lengths)
    outputs = [y, *floats(state).values()]
    noise = torch.Generator().manual_seed(1)
    loss = sum((o * torch.randn(o.shape, generator=noise, dtype=o.dtype)).sum() for o in outputs)
    grads = torch.autograd.grad(loss, [x, *layer.parameters()], materialize_grads=True)
    return [*outputs, *grads]


@every_layer
@pytest.mark.parametrize("t", [1, 7, 64, 255, 257])
def test_whole_equals_pieces(name, t):
    layer = noisy(name)
    x, reset = inputs(t)
    lengths = [n for n in (t // 3, 1, t - t // 3 - 1) if n]
    torch.testing.assert_close(
        results(layer, x, reset, lengths), results(layer, x, reset, [t]), **close
    )


@pytest.mark.tiny
@every_layer
def test_whole_equals_steps(name):
    layer = noisy(name)
    x, reset = inputs(33)
    torch.testing.assert_close(
        results(layer, x, reset, [1] * 33), results(layer, x, reset, [33]), **close
    )


@every_layer
def test_no_state_is_the_zero_state(name):
    layer = noisy(name)
    x, _ = inputs(9)
    torch.testing.assert_close(layer(x), layer(x, layer.init_state(2), None), **close)


@pytest.mark.tiny
@every_layer
def test_a_token_never_changes_an_earlier_output(name):
    """Beyond rounding, which tokens of a chunk share: their decays have one reference."""
    layer = noisy(name)
    x, reset = inputs(80)
    changed = x.clone()
    changed[:, 50] += 1
    before, after = layer(x, None, reset)[0], layer(changed, None, reset)[0]
    torch.testing.assert_close(before[:, :50], after[:, :50], rtol=0, atol=1e-13)
    assert (before[:, 50] - after[:, 50]).abs().max() > 1e-3


@pytest.mark.tiny
@every_layer
def test_a_reset_starts_a_new_sequence(name):
    layer = noisy(name)
    x = torch.randn(2, 70, C, dtype=torch.float64)
    reset = torch.zeros(2, 70, dtype=torch.bool)
    reset[:, [0, 3, 40, 41]] = True
    whole, state = in_pieces(layer, x, reset, [30, 40])
    apart = [layer(piece) for piece in x.split([3, 37, 1, 29], 1)]
    torch.testing.assert_close(whole, torch.cat([y for y, _ in apart], 1), **close)
    y, _ = layer(x, state)
    expected, _ = layer(x, apart[-1][1])
    torch.testing.assert_close(y, expected, **close)


@every_layer
def test_rows_of_a_batch_do_not_meet(name):
    layer = noisy(name)
    x, reset = inputs(20)
    reset[0] = False
    together, state = in_pieces(layer, x, reset, [9, 11])
    for row in range(2):
        alone, own = in_pieces(layer, x[row : row + 1], reset[row : row + 1], [9, 11])
        torch.testing.assert_close(alone[0], together[row], **close)
        torch.testing.assert_close(
            {k: v[0] for k, v in own.items()}, {k: v[row] for k, v in state.items()}, **close
        )


@every_layer
def test_gradients_are_slopes(name):
    layer = noisy(name)
    x, reset = inputs(6)
    leaves = {"x": x.requires_grad_(), **dict(layer.named_parameters())}
    noise = torch.randn(2, 6, C, dtype=torch.float64)

    def loss() -> Tensor:
        y, state = layer(x, None, reset)
        return (y * noise).sum() + sum(part.sum() for part in floats(state).values())

    grads = torch.autograd.grad(loss(), list(leaves.values()))
    for (leaf, at), grad in zip(leaves.items(), grads, strict=True):
        way, step = torch.randn_like(at), 1e-6  # a decay bends by exp of exp
        with torch.no_grad():
            at.add_(way, alpha=step)
            above = loss()
            at.sub_(way, alpha=2 * step)
            slope = (above - loss()) / (2 * step)
            at.add_(way, alpha=step)
        torch.testing.assert_close((grad * way).sum(), slope, rtol=1e-6, atol=1e-6, msg=leaf)


@every_layer
def test_a_gradient_reaches_every_parameter(name):
    layer = noisy(name)
    x, reset = inputs(20)
    layer(x, None, reset)[0].square().sum().backward()
    silent = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.tiny
@every_layer
def test_the_state_keeps_its_parts_and_dtypes(name):
    layer = noisy(name, torch.float32)
    start = layer.init_state(2)
    _, state = layer(torch.randn(2, 5, C), start, None)
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in start.items()}
    if name != "attention":
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in start.items()}


@every_layer
def test_a_layer_made_on_meta_initialises_as_one_made_here(name):
    here = LAYERS[name]()
    there = LAYERS[name]
    with torch.device("meta"):
        there = there()
    there.to_empty(device="cpu")
    for layer in (here, there):
        torch.manual_seed(1)
        layer.init_weights()
    torch.testing.assert_close(there.state_dict(), here.state_dict(), rtol=0, atol=0)


@every_layer
def test_bf16_autocast_stays_near_fp32(name):
    layer = noisy(name, torch.float32)
    x, reset = inputs(40, torch.float32)
    exact, exact_state = layer(x, None, reset)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = layer(x, None, reset)
    y.float().square().sum().backward()
    assert (y.float() - exact).norm() < 0.03 * exact.norm()
    for part in ("wkv", "ssm"):
        if part in state:
            assert state[part].dtype == torch.float32
            assert (state[part] - exact_state[part]).norm() < 0.03 * exact_state[part].norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@every_layer
@pytest.mark.slow
def test_compiles_without_a_graph_break(name):
    layer = noisy(name, torch.float32)
    x, reset = inputs(12, torch.float32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    want, got = layer(x, None, reset)[0], compiled(x, None, reset)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    wanted, gotten = (torch.autograd.grad(y.sum(), layer.parameters()) for y in (want, got))
    torch.testing.assert_close(gotten, wanted, rtol=1e-3, atol=1e-4)
