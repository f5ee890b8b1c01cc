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
    """What it returned; for a name that ends in ".state", the state of that alone."""


Tape = dict[str, deque[Call]]
"""Dotted name -> its calls in order; names in the order of the model."""


@contextmanager
def tape(
    model: nn.Module, *patterns: str, grad: bool = False, keep: int | None = None
) -> Iterator[Tape]:
    """Record the calls of every module that a pattern names while the context is open.

    Compiled blocks run eagerly meanwhile, because compiled code does not call hooks.

    Args:
        patterns: dotted names in which each part may hold wildcards: "blocks.*.fusion". After the
            name of a mixer, a block or nothing, "state" is the state that it returned:
            "blocks.3.mamba2.state", "state".
        grad: keep the graph of the recorded tensors; they are detached otherwise.
        keep: calls kept for each module, the newest; all if None.

    Raises:
        UserError: a pattern names no module of the model (with near names).
    """
    calls: Tape = {name: deque(maxlen=keep) for name in matching(model, patterns)}
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, kept in calls.items():
            owner, state = _owner(name)
            handle = modules[owner].register_forward_hook(_recorder(kept, grad, state))
            stack.callback(handle.remove)
        if any(module._compiled_call_impl is not None for module in modules.values()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield calls


def matching(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the modules, or their states, that any pattern names, in the order of the model."""
    names = []
    for name, module in model.named_modules():
        names.append(name)
        if hasattr(module, "init_state"):
            names.append(f"{name}.state".lstrip("."))
    found = set()
    for pattern in patterns:
        hits = [name for name in names if _matches(name, pattern)]
        if not hits:
            raise _no_module(pattern, names)
        found |= set(hits)
    return [name for name in names if name in found]


def _owner(name: str) -> tuple[str, bool]:
    """The module that a name means, and whether it means the state alone."""
    owner, _, last = name.rpartition(".")
    return (owner, True) if last == "state" else (name, False)


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    if (parts[-1] == "state") != (globs[-1] == "state"):
        return False  # no wildcard stands for a state
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _no_module(pattern: str, names: list[str]) -> UserError:
    near = difflib.get_close_matches(pattern.replace("*", "0"), names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the model has {_tops(names)}"
    return UserError(f"no module is called {pattern!r}; {hint}")


def _tops(names: list[str]) -> str:
    return ", ".join(name for name in names if name and "." not in name)


def _recorder(kept: deque[Call], grad: bool, state: bool) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = Call(inputs, output[1] if state else output)
        kept.append(call if grad else Call(*map(_detached, call)))

    return record


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor | State):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(map(_detached, value))
    if isinstance(value, dict):
        return {key: _detached(item) for key, item in value.items()}
    return value
