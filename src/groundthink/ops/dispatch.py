"""Choice of a backend by name: one table per op, and a rule for `auto`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from groundthink.errors import UserError, unknown

Op = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def pick(op: str, table: Mapping[str, Op], backend: str) -> Op:
    """The implementation of `op` that `backend` names.

    `auto` is the chunked form: it runs on every device and dtype.

    Raises:
        UserError: the table has no such backend.
    """
    if backend == "auto":
        return table["chunked"]
    if backend not in table:
        raise unknown(f"{op} backend", backend, [*table, "auto"])
    return table[backend]


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise UserError unless `tensor` has the `expected` shape."""
    if tuple(tensor.shape) != expected:
        raise UserError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)}")
