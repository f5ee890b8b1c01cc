"""Choice of a backend by name: one table per op, and a rule for `auto`."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from groundthink.errors import UserError, unknown

Op = Callable[..., tuple[torch.Tensor, torch.Tensor]]

OLDEST = (8, 0)
"""Compute capability from which the Triton kernels run: bf16 matrix units and enough memory."""


F = TypeVar("F", bound=Callable)


def _constant(function: F) -> F:
    """`torch.compiler.assume_constant_result`, which would import the compiler: that takes as long
    as torch itself, and most commands compile nothing."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def pick(op: str, table: Mapping[str, Op], backend: str, device: torch.device) -> Op:
    """The implementation of `op` that `backend` names, for tensors on `device`.

    A table goes from the plainest form to the fastest; `auto` is the last that can run here.

    Raises:
        UserError: the table has no such backend, or it cannot run on the device.
    """
    check_backend(op, table, backend)
    if backend == "auto":
        return table[_automatic(tuple(table), device)]
    if backend == "triton":
        obstacle = triton_obstacle(device)
        if obstacle:
            raise UserError(f"{op} backend 'triton' cannot run here: {obstacle}; use 'auto'")
    return table[backend]


def around(backend: str) -> str:
    """The backend of the ops around a recurrence that runs on `backend`: they have no chunks, and
    choose for themselves where the recurrence runs on one that only it has."""
    if backend == "chunked":
        return "eager"
    return backend if backend in ("reference", "triton") else "auto"


def able(table: Mapping[str, Op], device: torch.device) -> list[str]:
    """The backends of a table that can run on a device."""
    return [name for name in table if name != "triton" or not triton_obstacle(device)]


def check_backend(op: str, table: Mapping[str, Op], backend: str) -> None:
    """Raise UserError unless the table has the backend."""
    if backend != "auto" and backend not in table:
        raise unknown(f"{op} backend", backend, [*table, "auto"])


@_constant
def _automatic(names: tuple[str, ...], device: torch.device) -> str:
    """The backend of `auto` out of `names`."""
    if names[-1] != "triton" or device.type != "cuda":
        return [name for name in names if name != "triton"][-1]
    obstacle = triton_obstacle(device)
    choice = names[-2] if obstacle else "triton"
    _say(f"backend on {device}: {choice}" + (f", not triton: {obstacle}" if obstacle else ""))
    return choice


@functools.cache
def _say(line: str) -> None:
    """Log a line once."""
    logging.getLogger("groundthink").info(line)


@_constant
def triton_obstacle(device: torch.device) -> str:
    """Why the Triton kernels cannot run on tensors of this device; empty if they can."""
    return _obstacle(device)


@functools.cache
def _obstacle(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device.type != "cuda":
        return f"the tensors are on the {device.type}, not on an NVIDIA GPU"
    if torch.cuda.get_device_capability(device) < OLDEST:
        name = torch.cuda.get_device_name(device)
        return f"{name} has a compute capability below {OLDEST[0]}.{OLDEST[1]}"
    return ""


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Raise UserError unless `tensor` has the `expected` shape."""
    if tensor.shape != expected:
        raise UserError(f"{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)}")
