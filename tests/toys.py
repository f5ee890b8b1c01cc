"""Small real models for the tests of every folder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from groundthink.models.config import ModelConfig
from groundthink.models.names import VARIANTS


def small(variant: str, **changes) -> ModelConfig:
    """A variant shrunk to two layers of width 32 and 50 token ids."""
    shape = {"vocab_size": 50, "d_model": 32, "n_layers": 2, "rwkv_head_size": 16}
    shape |= {"mamba_head_size": 16, "mamba_state_size": 8}
    return replace(VARIANTS[variant], **shape | changes)


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with noise on every parameter, so that nothing is zero as published inits are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
