"""Decoding one token a step from a state in fixed buffers, by replaying a step recorded once."""

from __future__ import annotations

import torch
from torch import Tensor

from groundthink.layers.state import State
from groundthink.models.base import LanguageModel
from groundthink.models.recording import Recording
from groundthink.ops.fused import device_of, overwriting

PREFILL = 1024
"""Tokens per forward pass of `Decoder.read`."""
WARM_UP = 3
"""Steps before a CUDA graph is recorded: they compile kernels and let the libraries allocate."""


class Decoder:
    """A model in the middle of some texts: it reads on token by token and predicts the next.

    Where the state keeps its size, the first step is recorded from the tokens to the logits, on a
    GPU as a CUDA graph, and from then on replayed without Python. The weights are read where they
    lay then: new values in the same memory count, a model that was moved needs a new decoder.

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
        self._graph: torch.cuda.CUDAGraph | Recording | None = None
        if state is not None:
            self.load(state)

    @property
    def state(self) -> State:
        """The state after the last token, a copy."""
        return self._state.clone()

    @torch.inference_mode()
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
        if not self.model.recurrent:
            return self.read(tokens[:, None])
        self._tokens.copy_(tokens[:, None], non_blocking=True)
        with device_of(self._tokens):
            if self._graph is None:
                self._record()
            assert self._graph is not None
            self._graph.replay()
        return self._logits.clone()

    def _record(self) -> None:
        """Record a step; the state is then as it was."""
        before = self._state.clone()
        # Compiled blocks would be compiled again for one token, and own what they return.
        with torch.compiler.set_stance("force_eager"):
            graph = self._on_gpu() if self._tokens.is_cuda else self._on_cpu()
        self._graph = graph
        self._keep(before)

    def _on_cpu(self) -> Recording:
        with Recording() as recording:
            self._logits = self._advance()
        return recording

    def _on_gpu(self) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with overwriting():
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._advance()
            with torch.cuda.graph(graph, stream=stream):
                self._logits = self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        return graph

    def _advance(self) -> Tensor:
        logits, state = self.model(self._tokens, self._state)
        self._keep(state)
        return logits[:, -1]

    def _keep(self, state: State) -> None:
        """Make `state` the present one, where a recorded step finds it."""
        if not self.model.recurrent:
            self._state = state
            return
        new = dict(state.items())
        pairs = [(old, new[name]) for name, old in self._state.items()]
        moved = [(old, new) for old, new in pairs if old.data_ptr() != new.data_ptr()]
        torch._foreach_copy_(*map(list, zip(*moved, strict=True)))  # pyright: ignore
