"""Parameters, FLOPs and state bytes, counted on the built model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from groundthink.layers.attention import Attention
from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.rwkv6 import RWKV6
from groundthink.models.base import LanguageModel
from groundthink.models.components import COMPONENTS, component


def count(model: LanguageModel, context: int = 1024) -> dict[str, Any]:
    """Sizes of a model, built or on the meta device.

    FLOPs are of one forward token: 2 for each weight of a matrix product (the head included, the
    embedding look-up not), and the recurrences and attention read at `context` tokens.

    Returns:
        total and non_embedding parameters, parameters of each component and of the embedding,
        flops_per_token, state_bytes of one sequence (for attention at `context` tokens).
    """
    sizes: dict[str, int] = dict.fromkeys((*COMPONENTS, "other"), 0)
    embedding, matmul = 0, 0
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in ("embed", "positions", "head"):
            embedding += parameter.numel()
        else:
            sizes[component(name)] += parameter.numel()
            matmul += parameter.numel() if parameter.ndim >= 2 else 0
    recurrence = sum(_recurrence_flops(module, context) for module in model.modules())
    head = model.head.weight.numel()
    total = embedding + sum(sizes.values())
    return {
        "total": total,
        "non_embedding": total - embedding,
        "embedding": embedding,
        **sizes,
        "flops_per_token": 2 * (matmul + head) + recurrence,
        "state_bytes": _state_bytes(model, context),
    }


def _recurrence_flops(module: nn.Module, context: int) -> int:
    if isinstance(module, RWKV6):
        heads, size = module.heads
        return 7 * heads * size * size  # decay, write, bonus and read of S
    if isinstance(module, Mamba2):
        heads, size = module.heads
        return 5 * heads * size * module.groups[1]  # decay, write and read of h
    if isinstance(module, Attention):
        heads, size = module.heads
        return 4 * heads * size * context  # scores and values
    return 0


def _state_bytes(model: LanguageModel, context: int) -> int:
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    keys = sum(2 * 4 * context * heads * size for heads, size in (a.heads for a in attentions))
    return keys + model.init_state(1).nbytes()


def count_config(config: Any, context: int = 1024) -> dict[str, Any]:
    """`count` of the model a config describes, without allocating it."""
    from groundthink.models.build import construct

    with torch.device("meta"):
        return count(construct(config), context)
