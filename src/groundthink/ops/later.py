"""Gradients of parameters that a backward pass leaves for its end, or to a stream beside it.

Nobody reads the gradient of a parameter before the pass ends, unless the parameter has several
uses. So small sums can share launches there, and products need not stand in the way of others.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

AHEAD = 3
"""Products under way for a stream before it waits for the first, and frees what that read."""
TOGETHER = 16
"""Sums that share a launch."""


class Later:
    """What is left to do, and what is under way."""

    def __init__(self):
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.launch: Callable[[list[tuple[Tensor, Tensor]]], None] | None = None
        self.read: dict[torch.cuda.Stream, deque] = defaultdict(deque)
        self.side: torch.cuda.Stream | None = None

    def wait(self) -> None:
        """Let the current stream wait for all products."""
        if self.side is not None:
            torch.cuda.current_stream().wait_stream(self.side)

    def finish(self, parameters: Iterable[Tensor]) -> None:
        """Compute the sums, which are the memory of the gradients of the parameters.

        Autograd copies the gradient of a parameter that has several uses, before it is there.
        """
        self.wait()
        memory = {p.grad.untyped_storage().data_ptr() for p in parameters if p.grad is not None}
        assert all(out.untyped_storage().data_ptr() in memory for _, out in self.sums)
        for first in range(0, len(self.sums), TOGETHER):
            assert self.launch is not None
            self.launch(self.sums[first : first + TOGETHER])


_later: Later | None = None


@contextlib.contextmanager
def at_the_end(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Around a backward pass: gradients of parameters are complete after it, not within.

    The parameters have no gradients yet, and none has more than one use.
    """
    global _later
    _later = later = Later()
    try:
        yield
    finally:
        _later = None
    later.finish(parameters)


def left(
    shares: Tensor,
    parameters: Iterable[Tensor | None],
    launch: Callable[[list[tuple[Tensor, Tensor]]], None],
) -> Tensor | None:
    """The memory of a sum of shares [P, ...] that `launch` will compute; None if it has to be now.

    Not so if a parameter is not in fp32: its gradient will be cast before.
    """
    if _later is None or any(p is not None and p.dtype != torch.float32 for p in parameters):
        return None
    out = torch.empty(shares.shape[1:], dtype=torch.float32, device=shares.device)
    _later.launch = launch
    _later.sums.append((shares, out.data))  # autograd copies a tensor that others hold
    return out


@contextlib.contextmanager
def aside(*read: Tensor) -> Iterator[None]:
    """Around the launch of a product of `read`: on a stream of its own, if it need not be now."""
    if _later is None or not read[0].is_cuda:
        yield
        return
    main, side = torch.cuda.current_stream(), _side(read[0].device)
    _later.side = side
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    queue = _later.read[main]
    queue.append((side.record_event(), read))
    if len(queue) > AHEAD:
        main.wait_event(queue.popleft()[0])


def settled() -> None:
    """Let the current stream wait for the products that are under way."""
    if _later is not None:
        _later.wait()


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
