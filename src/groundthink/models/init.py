"""Initialisation of a whole model, one function.

| weight                      | published                  | balanced               |
|-----------------------------|----------------------------|------------------------|
| mixers, channel mixing      | their own `init_weights`   | the same               |
| output projection, RWKV-6   | zero, as the mixer has it  | N(0, s)                |
| output projection, Mamba-2  | the mixer's / (L n)^1/2    | N(0, s)                |
| norms, fusion               | their own `init_weights`   | the same               |
| embedding, tied, normed     | N(0, 1 / C)                | the same               |
| embedding, tied, not normed | N(0, 0.02)                 | the same               |
| embedding and head, untied  | U(+-1e-4) and orthogonal   | the same               |
| Mamba path past the fusion  | `mamba_direct`             | the same               |

N is given with its standard deviation; s = (2 L fan_in)^-1/2 for L layers; n = 2 residual additions
a layer, 1 without channel mixing (the released Mamba-2 follows GPT-2 in this).
A norm of the embedding frees its scale; 1 / C keeps the logit of the current token near 1.
Untied: RWKV-LM, gain 0.5 sqrt(V / C) if V > C else 0.5; it relies on the norm of the embedding.
"""

from __future__ import annotations

import torch
from torch import nn

from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.rwkv6 import RWKV6
from groundthink.models.base import LanguageModel
from groundthink.models.gpt2 import GPT2


@torch.no_grad()
def init_weights(model: LanguageModel, seed: int) -> None:
    """Initialise every parameter of a model in place; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if module is not model and hasattr(module, "init_weights"):
                module.init_weights()  # pyright: ignore
        for name, parameter in model.named_parameters():
            if name.endswith("mamba_direct"):
                nn.init.constant_(parameter, model.config.mamba_direct)
        _init_outputs(model)
        _init_embedding(model)


def _init_outputs(model: LanguageModel) -> None:
    c = model.config
    additions = c.n_layers * (1 if c.ffn == "none" else 2)
    for module in model.modules():
        if not isinstance(module, RWKV6 | Mamba2):
            continue
        weight = module.output.weight if isinstance(module, RWKV6) else module.out_proj.weight
        if c.init == "balanced":
            nn.init.normal_(weight, std=(2 * c.n_layers * weight.shape[1]) ** -0.5)
        elif isinstance(module, Mamba2):
            weight /= additions**0.5


def _init_embedding(model: LanguageModel) -> None:
    c, embed = model.config, model.embed.weight
    if c.tie_embeddings:
        nn.init.normal_(embed, std=1 / c.d_model if c.embed_norm else 0.02)
    else:
        nn.init.uniform_(embed, -1e-4, 1e-4)
        nn.init.orthogonal_(model.head.weight, gain=0.5 * max(1.0, c.vocab_size / c.d_model) ** 0.5)
    if isinstance(model, GPT2):
        nn.init.normal_(model.positions.weight, std=0.02)
