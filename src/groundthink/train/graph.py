"""A training step as one CUDA graph: recorded once, replayed without Python.

Small models spend most of a step in starting kernels; a graph starts them all at once. An observed
step has a graph of its own, of forward and backward only, recorded with the hooks of its observers
in place: their tapes hold memory that every replay fills anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from groundthink.data.stream import Batch
from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.ops.conv import WIDEST
from groundthink.ops.dispatch import triton_obstacle
from groundthink.ops.ssd import LARGEST as LARGEST_STATE
from groundthink.ops.wkv6 import LARGEST as LARGEST_HEAD

Pass = Callable[[Batch, State | None, Tensor], tuple[Tensor, State | None]]
"""Forward and backward: batch, state and number of scored tokens to the loss and the new state."""

Update = Callable[[Tensor], Tensor]
"""What follows in the same graph: the mean loss to what the step returns."""


class Graph:
    """One recorded pass over batches of one shape.

    Args:
        run: the pass; it leaves the gradients in the parameters.
        model: whose gradients they are.
        batch: the first batch, on the device.
        state: the state it starts from, or None for a pass that carries none.
        others: graphs of the same model, whose memory it shares.
        update: what the graph does with the gradients, if it is to do more than leave them.
    """

    def __init__(
        self,
        run: Pass,
        model: nn.Module,
        batch: Batch,
        state: State | None,
        others: Iterable[Graph] = (),
        update: Update | None = None,
    ):
        self.parameters = list(model.parameters())
        self.batch = Batch(*(x.clone() for x in batch))
        self.scored = torch.ones((), device=batch.tokens.device)
        self.before = None if state is None else state.map(torch.clone)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(self.batch, self.before, self.scored)  # lets the libraries allocate
        torch.cuda.current_stream().wait_stream(stream)
        self._clear()
        self.graph = torch.cuda.CUDAGraph()
        pool = next((other.graph.pool() for other in others), None)
        with torch.cuda.graph(self.graph, pool=pool):
            loss, self.state = run(self.batch, self.before, self.scored)
            self.result = loss / self.scored
            if update is not None:
                self.result = update(self.result)
        self.gradients = [p.grad for p in self.parameters]

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def fits(self, batch: Batch) -> bool:
        """Whether the batch has the recorded shape."""
        return batch.tokens.shape == self.batch.tokens.shape

    def replay(self, batch: Batch, state: State | None, scored: int) -> Tensor:
        """The mean loss of a batch, or what `update` made of it.

        The gradients are in the parameters, the state that was given in `before`, that after the
        batch in `state`.
        """
        if self.before is not None and state is not None and state is not self.before:
            copy(state, self.before)
        for static, given in zip(self.batch, batch, strict=True):
            static.copy_(given, non_blocking=True)
        self.scored.fill_(scored)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.result


def copy(source: State, target: State) -> None:
    """Overwrite the tensors of one state with those of another."""
    given, kept = ([x for _, x in state.items()] for state in (source, target))
    torch._foreach_copy_(kept, given)  # pyright: ignore


def recordable(model: LanguageModel, device: torch.device) -> bool:
    """Whether all of the model runs on Triton kernels here: other forms may ask the host."""
    c = model.config
    fit = (
        c.rwkv_head_size <= LARGEST_HEAD
        and max(c.mamba_head_size, c.mamba_state_size) <= LARGEST_STATE
        and c.mamba_conv <= WIDEST
    )
    return device.type == "cuda" and not triton_obstacle(device) and fit
