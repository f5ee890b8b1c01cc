"""What modules received and gave, recorded from outside by dotted name."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groundthink.errors import UserError
from groundthink.layers.state import State


class Call(NamedTuple):
    """One forward call of a module."""

    inputs: tuple[Any, ...]
    """Positional arguments."""
    output: Any
    """What it returned."""


Tape = dict[str, deque[Call]]
"""Dotted module name -> its calls in order; modules in the order of the model."""


@contextmanager
def tape(
    model: nn.Module, *patterns: str, grad: bool = False, keep: int | None = None
) -> Iterator[Tape]:
    """Record the calls of every module that a pattern names while the context is open.

    Compiled blocks run eagerly meanwhile, because compiled code does not call hooks.

    Args:
        patterns: dotted names in which each part may hold wildcards: "blocks.*.fusion".
        grad: keep the graph of the recorded tensors; they are detached otherwise.
        keep: calls kept for each module, the newest; all if None.

    Raises:
        UserError: a pattern names no module of the model (with near names).
    """
    calls: Tape = {name: deque(maxlen=keep) for name in matching(model, patterns)}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, kept in calls.items():
            handle = modules[name].register_forward_hook(_recorder(kept, grad))
            stack.callback(handle.remove)
        if any(module._compiled_call_impl is not None for module in modules.values()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield calls


def matching(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the modules that any pattern names, in the order of the model."""
    names = [name for name, _ in model.named_modules()]
    found = set()
    for pattern in patterns:
        hits = [name for name in names if _matches(name, pattern)]
        if not hits:
            raise _no_module(pattern, names)
        found |= set(hits)
    return [name for name in names if name in found]


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _no_module(pattern: str, names: list[str]) -> UserError:
    near = difflib.get_close_matches(pattern.replace("*", "0"), names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the model has {_tops(names)}"
    return UserError(f"no module is called {pattern!r}; {hint}")


def _tops(names: list[str]) -> str:
    return ", ".join(name for name in names if name and "." not in name)


def _recorder(kept: deque[Call], grad: bool) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        kept.append(Call(inputs, output) if grad else Call(_detached(inputs), _detached(output)))

    return record


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor | State):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(map(_detached, value))
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return value
