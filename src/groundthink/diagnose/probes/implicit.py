"""The mixing of a layer written out as attention: what each token adds to each later one.

A mixer is linear in the tokens once its data-dependent coefficients are held at their values:
decays, keys and receptances, step sizes, blends of the token shift, the slope of the convolution's
silu, gates, and the scales of the norms. Its output at t is then a sum over sources s,

    y_t = sum_s O[t, s] x_s + constant_t,

with one operator O[t, s] for the whole path of a branch: token shift or convolution, recurrence,
norm, projection, branch norm and fusion gate. `implicit` gives the summands O[t, s] x_s. Nothing
is approximated: they add up to what the layer put on the residual stream. Ali et al. 2024, "The
hidden attention of Mamba models", write the recurrence of Mamba this way.

Shape legend: T targets, S sources (the T tokens), C d_model, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.diagnose.tape import tape
from groundthink.layers.attention import Attention
from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.norms import RMSNorm
from groundthink.layers.rwkv6 import RWKV6
from groundthink.models.base import LanguageModel
from groundthink.ops.shift.reference import previous, raw_decay
from groundthink.ops.testing import relative_rms

MIXERS = ("rwkv6", "mamba2", "attention")


class Mixing(NamedTuple):
    """One layer on one text."""

    layer: int
    parts: dict[str, Tensor]
    """Branch -> what source s adds to target t [T, S + 1, C], fp64. The last column is the constant
    that no token adds: biases."""
    error: float
    """Relative RMS of the layer's own output against the sum of all parts."""

    def weights(self, branch: str) -> Tensor:
        """Size of what source s adds to target t, [T, S]."""
        return self.parts[branch][:, :-1].norm(dim=-1)


@torch.no_grad()
def implicit(model: LanguageModel, tokens: Tensor, reset: Tensor | None = None) -> Iterator[Mixing]:
    """The mixing of every layer on one text, in order.

    Args:
        tokens: int64 [T].
        reset: bool [T]; where true a new text begins.
    """
    names = [
        f"blocks.{i}.{name}"
        for i, block in enumerate(model.blocks)
        for name in (*MIXERS, "fusion")
        if hasattr(block, name)
    ]
    with tape(model, *names) as calls:
        model.features(tokens[None], None, reset if reset is None else reset[None])
    reset = torch.zeros_like(tokens, dtype=torch.bool) if reset is None else reset
    for i, block in enumerate(model.blocks):
        mixers = [name for name in MIXERS if hasattr(block, name)]
        first = calls[f"blocks.{i}.{mixers[0]}"][0]
        parts = summands(block, mixers, first.inputs[0][0].double(), reset)
        output = first.output[0]
        if hasattr(block, "fusion"):
            call = calls[f"blocks.{i}.fusion"][0]
            output = call.output + getattr(block, "mamba_direct", 0) * call.inputs[1]
        total = torch.stack([part.sum(1) for part in parts.values()]).sum(0)
        yield Mixing(i, parts, relative_rms(output[0], total))


def summands(
    block: nn.Module, mixers: Sequence[str], x: Tensor, reset: Tensor
) -> dict[str, Tensor]:
    """The parts of `Mixing` of one block, from the input x [T, C] of its mixers."""
    exact: Any = deepcopy(block).double()
    parts = []
    for name in mixers:
        mixer = getattr(exact, name)
        parts.append(OPERATORS[type(mixer)](mixer, x, reset))
    if hasattr(exact, "branch_norm"):
        parts = [_rms(norm, c) for norm, c in zip(exact.branch_norm, parts, strict=True)]
    if hasattr(exact, "fusion"):
        m = parts[1]
        if hasattr(exact.fusion, "gate"):
            share = exact.fusion.gate(*(c.sum(1) for c in parts))
            exact.fusion.gate = _Frozen(share[:, None])
        parts = list(exact.fusion.parts(*parts))
        if hasattr(exact, "mamba_direct"):
            parts[1] = parts[1] + exact.mamba_direct * m
    return dict(zip(mixers, parts, strict=True))


class _Frozen(nn.Module):
    """A gate that keeps its value whatever it reads."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def forward(self, r: Tensor, m: Tensor) -> Tensor:
        return self.value


def _rwkv6(mixer: RWKV6, x: Tensor, reset: Tensor) -> Tensor:
    shifted = previous(x[None], torch.zeros_like(x[:1]), reset[None])[0]
    back = shifted - x
    first, second = mixer.time_maa_w1, mixer.time_maa_w2
    hidden = torch.tanh((x + back * mixer.time_maa_x) @ first).unflatten(-1, second.shape[:2])
    blend = mixer.time_maa + torch.einsum("tqr,qrc->tqc", hidden, second)  # of w, k, v, r, g
    x_w, x_k, _, x_r, x_g = (x[:, None] + back[:, None] * blend).unbind(1)
    k, r = (y.unflatten(-1, mixer.heads) for y in (mixer.key(x_k), mixer.receptance(x_r)))
    decay = (mixer.time_decay, mixer.time_decay_w1, mixer.time_decay_w2)
    log_w = -raw_decay(x_w, *decay).exp().unflatten(-1, mixer.heads)
    reach = log_w.cumsum(0)
    gap = (reach - log_w)[:, None] - reach  # log of the decay after s and before t [T, S, H, D]
    earlier = _seen(reset).tril(-1)[..., None, None]
    matrix = torch.einsum("thk,tshk,shk->hts", r, gap.masked_fill(~earlier, -torch.inf).exp(), k)
    matrix += torch.diag_embed(torch.einsum("thk,hk,thk->ht", r, mixer.time_faaaa, k))
    values = [(1 - blend[:, 2]) * x, blend[:, 2] * shifted]
    c = _spread(matrix, [mixer.value(v).unflatten(-1, mixer.heads) for v in values])
    c = c - c.mean(-1, keepdim=True)
    scale = torch.rsqrt(c.sum(1).square().mean(-1) + mixer.ln_x.eps)[:, None, :, None]
    c = (c * scale).flatten(-2) * mixer.ln_x.weight
    c[:, -1] += mixer.ln_x.bias
    return mixer.output(c * F.silu(mixer.gate(x_g))[:, None])


def _mamba2(mixer: Mamba2, x: Tensor, reset: Tensor) -> Tensor:
    z, xbc, dt = mixer.in_proj(x).split(mixer.splits[0], dim=-1)
    taps = mixer.conv1d.weight.squeeze(1).flip(1).t()  # [W, channels], the newest token first
    seen = _seen(reset)
    delayed = []
    for j, tap in enumerate(taps):
        same = F.pad(seen.diagonal(-j), (min(j, len(x)), 0))[:, None]  # t and t - j are of one text
        delayed.append(tap * F.pad(xbc, (0, 0, j, 0))[: len(x)].where(same, 0))
    bias = cast(Tensor, mixer.conv1d.bias)
    slope = torch.sigmoid(sum(delayed) + bias)  # silu(v) = slope v
    _, b, c = ((sum(delayed) + bias) * slope).split(mixer.splits[1], dim=-1)
    heads_per_group = mixer.heads[0] // mixer.groups[0]
    b, c = (y.unflatten(-1, mixer.groups).repeat_interleave(heads_per_group, 1) for y in (b, c))
    dt = F.softplus(dt + mixer.dt_bias)
    reach = (-dt * mixer.A_log.exp()).cumsum(0)  # [T, H]
    gap = (reach[:, None] - reach).masked_fill(~seen.tril()[..., None], -torch.inf)
    matrix = torch.einsum("thn,shn,tsh,sh->hts", c, b, gap.exp(), dt)
    matrix += torch.diag_embed(mixer.D[:, None].expand(-1, len(x)))
    values = [(slope * v)[:, : z.shape[1]].unflatten(-1, mixer.heads) for v in (*delayed, bias)]
    c = _spread(matrix, values[:-1], values[-1]).flatten(-2) * F.silu(z)[:, None]
    grouped = c.sum(1).unflatten(-1, (mixer.norm.groups, -1))
    scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + mixer.norm.eps)
    c = c.unflatten(-1, (mixer.norm.groups, -1)) * scale[:, None]
    return mixer.out_proj(c.flatten(-2) * mixer.norm.weight)


def _attention(mixer: Attention, x: Tensor, reset: Tensor) -> Tensor:
    q, k, v = mixer.qkv(x).unflatten(-1, (3, *mixer.heads)).unbind(1)
    score = torch.einsum("thd,shd->hts", q, k) * mixer.heads[1] ** -0.5
    matrix = score.masked_fill(~_seen(reset).tril(), -torch.inf).softmax(-1)
    return mixer.output(_spread(matrix, [v]).flatten(-2))


OPERATORS = {RWKV6: _rwkv6, Mamba2: _mamba2, Attention: _attention}


def _rms(norm: RMSNorm, c: Tensor) -> Tensor:
    scale = torch.rsqrt(c.sum(1).square().mean(-1, keepdim=True) + norm.eps)
    return c * scale[:, None] * norm.weight


def _seen(reset: Tensor) -> Tensor:
    """Whether two tokens are of one text, bool [T, T]."""
    text = reset.cumsum(0)
    return text[:, None] == text


def _spread(matrix: Tensor, values: list[Tensor], constant: Tensor | None = None) -> Tensor:
    """What each source adds to the read-out of each head, [T, S + 1, H, D].

    Args:
        matrix: weight of what was written at s in what is read at t [H, T, S].
        values: what token s - j brought to the write at s, for each delay j [S, H, D].
        constant: what no token brought to it.
    """
    steps, (_, heads, width) = matrix.shape[1], values[0].shape
    out = matrix.new_zeros(steps, steps + 1, heads, width)
    for j, value in enumerate(values[:steps]):
        out[:, : steps - j] += torch.einsum("hts,shd->tshd", matrix, value)[:, j:]
    if constant is not None:
        out[:, -1] = torch.einsum("hts,shd->thd", matrix, constant)
    return out
