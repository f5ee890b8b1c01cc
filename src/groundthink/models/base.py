"""What every language model here has: embedding, blocks, final norm, head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundthink.layers.norms import make_norm
from groundthink.layers.state import State
from groundthink.models.config import ModelConfig


def embedding(count: int, width: int) -> nn.Embedding:
    """An embedding with unset weights: to draw them on the meta device torch imports its compiler,
    which takes as long as torch itself."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


class LanguageModel(nn.Module):
    """`model(tokens, state, reset) -> (logits, state)`; subclasses build the blocks between."""

    recurrent: bool
    """Whether the state keeps its size, so that it can be carried without end."""
    blocks: nn.ModuleList

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed = embedding(config.vocab_size, config.d_model)
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head share the embedding, if the config says so; to_empty() parts them."""
        if self.config.tie_embeddings:
            self.head.weight = self.embed.weight

    def features(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [B, T, C] after the final norm, and the state after the last token.

        The arguments are those of the model.
        """
        raise NotImplementedError

    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        raise NotImplementedError
