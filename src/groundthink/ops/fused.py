"""Kernels with hand-written gradients as functions that eager and compiled code can call."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from groundthink.errors import UserError
from groundthink.ops.dispatch import pick


class Operator:
    """A launcher of kernels, called as it is or as an operator that `torch.compile` keeps whole.

    Args:
        name: its name among the registered operators.
        launch: takes and returns tensors; annotated, because its schema is read off it.
        fake: the same on tensors without data: empty results of the right shape and type.
    """

    def __init__(self, name: str, launch: Callable, fake: Callable):
        self.launch = launch
        self.op = torch.library.custom_op(f"groundthink::{name}", launch, mutates_args=())
        self.op.register_fake(fake)

    def __call__(self, *args: Any) -> Any:
        return self.op(*args) if traced(args) else self.launch(*args)


def traced(args: tuple[Any, ...]) -> bool:
    """Whether somebody is looking: at this code, or for operators, or through other tensors."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or any(isinstance(a, Tensor) and type(a) not in (Tensor, torch.nn.Parameter) for a in args)
    )


def differentiable(forward: Operator, setup: Callable, backward: Callable) -> Callable:
    """`forward` with a gradient, cheap to call in eager code and whole under `torch.compile`.

    Args:
        forward: computes the outputs.
        setup: setup(ctx, inputs, outputs) keeps what the gradient needs.
        backward: backward(ctx, *grads) gives a gradient or None for every input; gradients of
            outputs that are not used arrive as None.
    """

    def keep(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        setup(ctx, inputs, output)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            outputs = forward.launch(*args)
            keep(ctx, args, outputs)
            return outputs

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):
            return backward(ctx, *grads)

    forward.op.register_autograd(backward, setup_context=keep)

    def call(*args):
        if traced(args):
            return forward.op(*args)
        if torch.is_grad_enabled():
            return Eager.apply(*args)
        return forward.launch(*args)

    return call


def choose(
    op: str, table: Mapping[str, Callable], backend: str, x: Tensor, limit: str = ""
) -> Callable:
    """`dispatch.pick` for the device and dtype of x: fp64 has no Triton form.

    Args:
        limit: what else keeps the Triton form from these inputs, as in "takes up to 4 taps".

    Raises:
        UserError: the backend is unknown or cannot run here.
    """
    if x.dtype == torch.float64:
        limit = "takes no fp64"
    if limit and backend == "triton":
        raise UserError(f"{op} backend 'triton' {limit}; use 'auto'")
    if limit:
        table = {name: run for name, run in table.items() if name != "triton"}
    if "eager" in table and _one_token(x):
        table = {**table, "eager": table["reference"]}
    return pick(op, table, backend, x.device)


def _one_token(x: Tensor) -> bool:
    """Whether x [B, T, ...] is a token that no gradient goes through: the fewest calls win."""
    return x.dim() > 2 and x.shape[1] == 1 and not torch.is_grad_enabled()


def full_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Keeps autocast away from what is computed from x; free where it is off."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


_overwrite = contextvars.ContextVar("overwrite", default=False)


@contextlib.contextmanager
def overwriting() -> Iterator[None]:
    """Within it Triton steps of a recurrence leave the new state in the memory of the old one.

    For eager code without gradients: a registered operator may not return what it was given.
    """
    token = _overwrite.set(True)
    try:
        yield
    finally:
        _overwrite.reset(token)


def after(state: Tensor | None, fresh: Tensor) -> Tensor:
    """Where a step leaves its state: over the one before it if `overwriting`, else `fresh`."""
    return fresh if state is None or not _overwrite.get() else state


def room(x: Tensor) -> Tensor:
    """Contiguous memory for a tensor like x."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def flags(reset: Tensor | None) -> Tensor | None:
    """A mask as kernels read it: bytes, one after the other."""
    return None if reset is None else reset.contiguous().view(torch.uint8)


def device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Kernels start on the current device: make it that of x."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def rows(x: Tensor) -> tuple[Tensor, int, int]:
    """x [..., C] as rows of channels, and how to step through them.

    Returns:
        x itself where its rows lie at one distance and its channels next to one another, else a
        copy that does; the distance between rows in units; and the elements of a unit, at most 8.
        A kernel multiplies the two, so that the compiler knows how far rows are aligned.
    """
    channels = x.shape[-1]
    if x.stride(-1) != 1 and channels > 1:
        x = x.contiguous()
    step = expected = 0
    for size, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if step and stride != expected:
            x, step = x.contiguous(), channels
            break
        step = step or stride
        expected = stride * size
    unit = 8
    while step % unit:
        unit //= 2
    return x, step // unit, unit


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; the interpreter passes for one of three."""
    if device.type != "cuda":
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count
