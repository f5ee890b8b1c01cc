"""Decoding one token a step from a state in fixed buffers, on a GPU as one replayed CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.ops.fused import device_of, overwriting

PREFILL = 1024
"""Tokens per forward pass of `Decoder.read`."""
WARM_UP = 3
"""Steps before the recording: they compile the kernels and let the libraries allocate."""


class Decoder:
    """A model in the middle of some texts: it reads on token by token and predicts the next.

    On a GPU the step of a model whose state keeps its size is recorded at its first call, from
    the tokens to the logits, and from then on replayed without Python. The weights are read where
    they lay then: new values in the same memory count, a model that was moved needs a new decoder.

    Args:
        model: in use by nothing else during a call.
        batch: B, the texts side by side.
        state: of the model after what came before, copied; zeros if None.

    Raises:
        UserError: the state is of another model or batch.
    """

    def __init__(self, model: LanguageModel, batch: int, state: State | None = None):
        self.model, self.batch = model, batch
        self._tokens = torch.zeros(batch, 1, dtype=torch.int64, device=model.embed.weight.device)
        self._state = model.init_state(batch)
        self._recorded = model.recurrent and self._tokens.is_cuda
        self._graph: torch.cuda.CUDAGraph | None = None
        if state is not None:
            self.load(state)

    @property
    def state(self) -> State:
        """The state after the last token, a copy."""
        return self._state.clone()

    def load(self, state: State) -> None:
        """Go on from a copy of `state`.

        Raises:
            UserError: the state is of another model or batch.
        """
        state.require_fit(self.model.init_state(self.batch))
        self._keep(state.map(lambda x: x.to(self._tokens.device, copy=True)))

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after many tokens at once, int64 [B, T], T >= 1."""
        logits = tokens.new_empty(0)
        for piece in tokens.to(self._tokens.device).split(PREFILL, dim=1):
            logits, state = self.model(piece, self._state)
            self._keep(state)
        return logits[:, -1]

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] after one more token of every text, int64 [B]; waits for no device."""
        if not self._recorded:
            return self.read(tokens[:, None])
        self._tokens.copy_(tokens[:, None], non_blocking=True)
        with device_of(self._tokens):
            if self._graph is None:
                self._graph, self._logits = self._record()
            self._graph.replay()
        return self._logits.clone()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a step, and where it leaves the logits; the state is as it was."""
        before = self._state.clone()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Compiled blocks would be compiled again for one token, and own what they return.
        with overwriting(), torch.compiler.set_stance("force_eager"):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._advance()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                logits = self._advance()
        self._keep(before)
        return graph, logits

    def _advance(self) -> Tensor:
        logits, state = self.model(self._tokens, self._state)
        self._keep(state)
        return logits[:, -1]

    def _keep(self, state: State) -> None:
        """Make `state` the present one: a graph finds it where the last one was."""
        if not self._recorded:
            self._state = state
            return
        pairs = [
            (old, new)
            for (_, old), (_, new) in zip(self._state.items(), state.items(), strict=True)
            if old.data_ptr() != new.data_ptr()
        ]
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))  # pyright: ignore
