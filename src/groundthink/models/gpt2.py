"""The GPT-2 baseline: pre-norm attention with learned positions, no biases in the projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import UserError
from groundthink.layers.attention import Attention
from groundthink.layers.mlp import MLP
from groundthink.layers.norms import make_norm
from groundthink.layers.state import LayerState, State
from groundthink.models.base import LanguageModel, embedding
from groundthink.models.config import ModelConfig


class GPT2Block(nn.Module):
    """LayerNorm -> attention -> residual -> LayerNorm -> GELU MLP -> residual."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.norm1 = make_norm(c.norm, c.d_model, c.norm_eps)
        self.attention = Attention(c.d_model, c.attention_heads)
        self.norm2 = make_norm(c.norm, c.d_model, c.norm_eps)
        self.ffn = MLP(c.d_model, int(c.ffn_mult * c.d_model))

    def forward(
        self, x: Tensor, state: LayerState | None, reset: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        y, new = self.attention(self.norm1(x), (state or {}).get("attention"), reset)
        x = x + y
        return x + self.ffn(self.norm2(x))[0], {"attention": new}


class GPT2(LanguageModel):
    """Radford et al. 2019, with the keys and values as its (growing) state.

    Positions count from the last reset, so that packed documents equal separate ones.
    """

    recurrent = False

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.positions = embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(GPT2Block(config) for _ in range(config.n_layers))

    def init_state(self, batch: int) -> State:
        """The state before the first token: no keys, position 0."""
        layers: list[LayerState] = [
            {"attention": block.attention.init_state(batch)}  # pyright: ignore
            for block in self.blocks
        ]
        return State(layers)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Tensor, Any]:
        """Next-token logits [B, T, V] and the state; `return_states` gives {"state": State}.

        Raises:
            UserError: a position lies beyond the context length.
        """
        x, new = self.features(tokens, state, reset)
        return self.head(x), {"state": new} if return_states else new

    def features(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [B, T, C], and the state after the last token."""
        state = state or self.init_state(tokens.shape[0])
        first = state.layers[0]["attention"]
        past = first["k"].shape[2]
        length = past + tokens.shape[1]
        if length > self.config.context_length:
            raise UserError(
                f"GPT-2 knows {self.config.context_length} positions and the text has {length} "
                "tokens; use a shorter text, a larger model.context_length, or a recurrent model"
            )
        position = count_from_reset(past - first["start"], tokens, reset)
        x = self.embed(tokens) + self.positions(position)
        new: list[LayerState] = []
        for block, layer in zip(self.blocks, state.layers, strict=True):
            x, layer = block(x, layer, reset)
            new.append(layer)
        return self.norm(x), State(new)


def count_from_reset(start: Tensor, tokens: Tensor, reset: Tensor | None) -> Tensor:
    """Position of each token since the last reset, int64 [B, T]; `start` [B] is the first one's."""
    index = torch.arange(tokens.shape[1], device=tokens.device)
    position = start[:, None] + index
    if reset is None:
        return position
    last = torch.where(reset, index, -1).cummax(dim=1).values
    return torch.where(last < 0, position, index - last)
