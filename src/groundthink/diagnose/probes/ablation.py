"""Cutting a branch out of a running model from outside, at three sites.

- output: the additive part of a branch after its gate; in a block of one mixer, the mixer's output.
- read: what the recurrence reads from its past. The current token still passes through bonus or
  skip, and token shift and convolution still see the tokens before it.
- memory: everything the branch carries into the call, replaced before its first token.

What stands in for the part that is cut is a function, so that zero, a mean, another document and
a fitted constant are all the same to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import UserError, unknown
from groundthink.layers import mamba2, rwkv6
from groundthink.models.base import LanguageModel
from groundthink.models.hybrid import Block

MIXERS = ("rwkv6", "mamba2", "attention")
SITES = ("output", "read", "memory")


def _bonus(r: Tensor, k: Tensor, v: Tensor, _: None, u: Tensor, *__: Any) -> Tensor:
    """What WKV6 gives at a token from that token alone, [B, T, H, V]."""
    return (r * u * k).sum(-1, keepdim=True) * v


def _skip(x: Tensor, dt: Tensor, _: Tensor, B: Tensor, C: Tensor, D: Tensor, *__: Any) -> Tensor:
    """What SSD gives at a token from that token alone, [B, T, H, P]."""
    write = (B * C).sum(-1).repeat_interleave(x.shape[2] // B.shape[2], dim=2)
    return (dt * write + D)[..., None] * x


RECURRENCES = {rwkv6.RWKV6: (rwkv6, "wkv6", _bonus), mamba2.Mamba2: (mamba2, "ssd", _skip)}
"""Where each mixer finds the op of its recurrence, and the part of it that reads no past."""

Replace = Callable[[str, Tensor], Tensor]
"""(dotted name, part as computed) -> what the model goes on with, in the same shape. The name is
that of the mixer, ``blocks.3.rwkv6``; at the site memory that of the state, ``blocks.3.rwkv6.wkv``.
Parts are [B, T, C] at output, [B, T, H, V] at read, and [B, ...] at memory."""


def zero(_: str, part: Tensor) -> Tensor:
    """Nothing stands in."""
    return torch.zeros_like(part)


@dataclass(frozen=True)
class Cut:
    """One intervention on one branch."""

    branch: str
    """rwkv6, mamba2 or attention."""
    site: str = "output"
    """output, read or memory."""
    replace: Replace = zero
    """What stands in for the part."""
    layers: Collection[int] | None = None
    """Blocks in which it is cut; None cuts all that have the branch."""


@contextmanager
def ablated(model: LanguageModel, *cuts: Cut) -> Iterator[None]:
    """Run the model with the cuts while the context is open; at most one for a branch and site.

    A part that is replaced by itself changes no bit of the output, and with no cut at all the
    model still takes the path that it takes when it is cut: compare with that.

    Raises:
        UserError: no block has the branch, or there is no such site.
    """
    for cut in cuts:
        _check(model, cut)
    with ExitStack() as stack:
        for i, block in enumerate(model.blocks):
            here = [cut for cut in cuts if cut.layers is None or i in cut.layers]
            here = [cut for cut in here if hasattr(block, cut.branch)]
            if isinstance(block, Block) and block.parallel:
                outputs = {cut.branch: cut.replace for cut in here if cut.site == "output"}
                hook = _fused(block, f"blocks.{i}", outputs)
                stack.callback(block.fusion.register_forward_hook(hook).remove)
                here = [cut for cut in here if cut.site != "output"]
            for cut in here:
                mixer = getattr(block, cut.branch)
                run = _cut(mixer, f"blocks.{i}.{cut.branch}", cut)
                stack.enter_context(swapped(mixer, "forward", run))
        if any(module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _check(model: LanguageModel, cut: Cut) -> None:
    present = [name for name in MIXERS if any(hasattr(block, name) for block in model.blocks)]
    if cut.branch not in present:
        raise unknown("branch of this model", cut.branch, present)
    if cut.site not in SITES:
        raise unknown("site of an ablation", cut.site, SITES)
    if cut.site == "read" and cut.branch == "attention":
        raise UserError("attention has no recurrence to cut: use the site output or memory")


def parts(block: Block, r: Tensor, m: Tensor) -> dict[str, Tensor]:
    """What each branch adds to the residual stream, given both normed outputs, [B, T, C] each."""
    r_part, m_part = block.fusion.parts(r, m)
    if hasattr(block, "mamba_direct"):
        m_part = m_part + block.mamba_direct * m
    return dict(zip(block.mixers, (r_part, m_part), strict=True))


def _fused(block: Block, name: str, replace: dict[str, Replace]) -> Callable[..., Tensor]:
    def hook(_: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
        if replace:
            for branch, part in parts(block, *inputs).items():
                if branch in replace:
                    output = output + (replace[branch](f"{name}.{branch}", part) - part)
        return output

    return hook


def _cut(mixer: nn.Module, name: str, cut: Cut) -> Callable[..., Any]:
    """The forward function of the mixer with one cut."""
    if cut.site == "memory":
        return _forgetting(mixer.forward, name, cut)
    make = _unread if cut.site == "read" else _alone
    return make(mixer, lambda part: cut.replace(name, part))


def _alone(mixer: nn.Module, replace: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    run = mixer.forward

    def forward(*inputs: Any) -> Any:
        y, state = run(*inputs)
        return y + (replace(y) - y), state

    return forward


def _forgetting(run: Callable[..., Any], name: str, cut: Cut) -> Callable[..., Any]:
    def forward(x: Tensor, state: Any = None, reset: Tensor | None = None) -> Any:
        if cut.replace is zero:  # attention has no zeros that nobody sees
            marks = x.new_zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset.clone()
            marks[:, 0] = True
            return run(x, state, marks)
        assert state is not None, "what a branch carries into a call can be replaced, not made up"
        new = {part: cut.replace(f"{name}.{part}", value) for part, value in state.items()}
        return run(x, new, reset)

    return forward


def _unread(mixer: nn.Module, replace: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    run = mixer.forward
    module, name, present = next(x for kind, x in RECURRENCES.items() if isinstance(mixer, kind))
    op = getattr(module, name)

    def cut(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
        y, state = op(*inputs, **options)
        past = y - present(*inputs).to(y.dtype)
        return y + (replace(past) - past), state

    def forward(*inputs: Any) -> Any:
        with swapped(module, name, cut):
            return run(*inputs)

    return forward


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` while the context is open, and is what it was, or absent, after."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
