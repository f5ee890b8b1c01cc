"""Models whose memory is set by hand."""

from __future__ import annotations

import math

import torch
from toys import randomized, small

from groundthink.diagnose.subject import Subject
from groundthink.models.build import build


@torch.no_grad()
def remember(block, tau: float) -> None:
    """Both branches of the block keep e^(-d / tau) of a write over d tokens; 0 forgets at once."""
    rate = 1 / max(tau, 1e-3)
    block.rwkv6.time_decay_w2.zero_()
    block.rwkv6.time_decay.fill_(math.log(rate))
    mixer = block.mamba2
    mixer.in_proj.weight.split(mixer.splits[0])[2].zero_()
    mixer.dt_bias.zero_()
    mixer.A_log.fill_(math.log(rate / math.log(2)))  # dt = softplus(0)


@torch.no_grad()
def silence(block) -> None:
    """Nothing of what the mixers of the block say is heard."""
    block.rwkv6.output.weight.zero_()
    block.mamba2.out_proj.weight.zero_()


def model(*taus: float, variant: str = "gf-mh"):
    """A layer for each tau."""
    planted = randomized(build(small(variant, n_layers=len(taus)))).eval()
    for block, tau in zip(planted.blocks, taus, strict=True):
        remember(block, tau)
    return planted


def subject(model, texts: int = 40, length: int = 60, tokens: int = 50, **fields) -> Subject:
    """The model with documents of random tokens."""
    generator = torch.Generator().manual_seed(0)
    documents = list(torch.randint(0, tokens, (texts, length), generator=generator))
    return Subject(model, [], **{"steps": 5, "documents": documents, "samples": texts, **fields})
