"""A recorded run of tensor code: its operators called again, with nothing of Python between them.

What a CUDA graph is to a GPU this is to a CPU, where a small model spends most of a step between
its operators. All tensors of the run stay where they are and are filled anew, so that a view of
one needs no call at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

Call = tuple[Callable[..., Any], tuple, dict[str, Any]]


class Recording(TorchDispatchMode):
    """Records what runs within it, for `replay` under the same grad mode.

    Raises:
        RuntimeError: the code reads a value of a tensor, and so may do something else next time.
    """

    def __init__(self):
        super().__init__()
        self._calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # what is made of other operators is recorded as these
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if _reads_values(func):
            raise RuntimeError(f"{func} reads values of a tensor, which no recording can repeat")
        result = func(*args, **kwargs)
        made = list(_tensors((result,)))
        memory = {_memory(x) for x in _tensors((*args, *kwargs.values()))}
        if func._schema.is_mutable:
            self._calls.append((func, args, kwargs))
        elif not memory.issuperset(map(_memory, made)):
            self._calls.append(_into(func, made, args, kwargs))
        return result

    def replay(self) -> None:
        """Run the recorded operators once more, from and into the same tensors."""
        for call, args, kwargs in self._calls:
            call(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results, which may come in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@functools.cache
def _reads_values(func: OpOverload) -> bool:
    """Whether the operator tells the host something of the values in a tensor."""
    tags = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
    return any(tag in func.tags for tag in tags)


def _into(func: OpOverload, made: list[Tensor], args: tuple, kwargs: dict[str, Any]) -> Call:
    """The call of an operator with its results written into `made`."""
    form = _out_form(func)
    if form is not None:
        return form[0], args, {**kwargs, **dict(zip(form[1], made, strict=True))}

    def again(*args, **kwargs):
        for old, new in zip(made, _tensors((func(*args, **kwargs),)), strict=True):
            old.copy_(new)

    return again, args, kwargs


@functools.cache
def _out_form(func: OpOverload) -> tuple[OpOverload, list[str]] | None:
    """The form of an operator that takes memory for its results, and the names of these."""
    packet, own = func.overloadpacket, _inputs(func)
    for form in (getattr(packet, name) for name in packet.overloads()):
        names = [a.name for a in form._schema.arguments if a.is_out]
        if names and _inputs(form) == own:
            return form, names
    return None


def _inputs(func: OpOverload) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in func._schema.arguments if not a.is_out]
