"""Losses of single tokens and texts; logits of a whole text are never held at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from groundthink.layers.state import State
from groundthink.models.base import LanguageModel

ROWS = 8
"""Texts in one forward pass."""
PIECE = 128
"""Tokens whose logits are held at once."""


def token_losses(model: LanguageModel, features: Tensor, targets: Tensor) -> Tensor:
    """Loss of every token in nats [B, T], from what the head reads [B, T, C]."""
    pieces = []
    for x, y in zip(features.split(PIECE, 1), targets.split(PIECE, 1), strict=True):
        logits = model.head(x).float().flatten(0, 1)
        losses = F.cross_entropy(logits, y.flatten(), reduction="none")
        pieces.append(losses.view(y.shape))
    return torch.cat(pieces, 1)


def text_losses(model: LanguageModel, texts: Tensor, state: State | None = None) -> Tensor:
    """Mean loss in nats of the tokens of each text that follow its first [B]."""
    features, _ = model.features(texts[:, :-1], state)
    return token_losses(model, features, texts[:, 1:]).mean(1)
