"""Triton kernels that cost little to launch, and that can be compiled all at once.

Triton works out at every launch what a kernel is to be compiled for. A `Kernel` looks that up by
what the arguments are, and starts the compiled form directly.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

REMEMBERED = 4096
"""Launches of a kernel that are remembered: by sizes, so that a model has a few dozen."""


class Kernel:
    """A function of Triton's language that is launched as ``kernel[grid](*args, **options)``.

    Grid, arguments and options are those of `triton.jit`; all arguments that are no constexpr are
    given by position.
    """

    def __init__(self, function: Any):
        self.function = function
        self.known: dict[tuple, tuple[Any, tuple]] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        if not isinstance(self.function, JITFunction):  # the interpreter
            return self.function[grid]
        return functools.partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        key = (
            torch.cuda.current_device() if torch.cuda.is_initialized() else 0,
            *[_kind(a) for a in args],
            *options.items(),
        )
        if _together is not None:
            _together.add(self, key, args, options)
            return
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self.compile(args, options)
        compiled, rest = found
        compiled[(*grid, 1, 1)[:3]](*args, *rest)

    def compile(self, args: tuple, options: dict[str, Any]) -> tuple[Any, tuple]:
        """The compiled form for such arguments, and the constexprs that follow them."""
        if len(self.known) >= REMEMBERED:
            self.known.clear()
        compiled = self.function.warmup(*args, grid=(1,), **options)
        names = self.function.arg_names[len(args) :]
        return compiled, tuple(options[name] for name in names)


def _kind(argument: Any) -> Any:
    """What a kernel is compiled for: the type and alignment of tensors, numbers as they are."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() & 15
    if isinstance(argument, tuple):
        return tuple(_kind(a) for a in argument)
    return argument


def kernel(function: Any = None, **options: Any) -> Any:
    """Decorate a function as a `Kernel`; the options are those of `triton.jit`."""
    if function is None:
        return functools.partial(kernel, **options)
    return Kernel(triton.jit(function, **options))


class _Together:
    """Kernels that several threads compile: Triton gives up Python's lock for most of it."""

    def __init__(self, pool: ThreadPoolExecutor):
        self.pool = pool
        self.device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.pending: dict[tuple, Future] = {}

    def add(self, what: Kernel, key: tuple, args: tuple, options: dict[str, Any]) -> None:
        if key in what.known or (what, key) in self.pending:
            return
        # a dtype stands for a tensor that is aligned: those of a pass are not to be kept alive
        args = tuple(
            a.dtype if isinstance(a, Tensor) and a.data_ptr() % 16 == 0 else a for a in args
        )
        self.pending[what, key] = self.pool.submit(self._compile, what, args, options)

    def _compile(self, what: Kernel, args: tuple, options: dict[str, Any]) -> tuple[Any, tuple]:
        if self.device is not None:
            torch.cuda.set_device(self.device)
        compiled, rest = what.compile(args, options)
        compiled[(1, 1, 1)]  # loads it
        return compiled, rest

    def finish(self) -> None:
        for (what, key), future in self.pending.items():
            what.known[key] = future.result()


_together: _Together | None = None


@contextlib.contextmanager
def compiled_together() -> Iterator[None]:
    """Inside, kernels are not run but compiled, side by side; what they would write is undefined.

    A pass through a model in here prepares the passes after it.
    """
    global _together
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(threads) as pool:
        _together = _Together(pool)
        try:
            yield
            _together.finish()
        finally:
            _together = None
