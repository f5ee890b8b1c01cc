"""The models of a race: ours, ours with the reference loops, and the GPT-2 of transformers."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.bench.config import BenchModel
from groundthink.bench.work import Training, random_batch
from groundthink.errors import UserError
from groundthink.models.build import as_config, build
from groundthink.ops.testing import relative_rms
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Verdict, decide

PARITY_SHAPE = (1, 96)  # crosses the chunk boundaries of both recurrences


def require(name: str) -> None:
    """Raise UserError unless `name` is a contestant that can run here."""
    if name == "gpt2" and find_spec("transformers") is None:
        raise UserError("against gpt2 needs transformers: pip install transformers")
    if name not in ("reference", "gpt2"):
        as_config(name)


class TransformersGPT2(nn.Module):
    """GPT-2 of transformers, 192 wide, 8 layers, 4 heads, no dropout, as one of our models.

    Its state is the key-value cache, which it fills only where it is given one.
    """

    recurrent = False

    def __init__(self, vocab_size: int, context: int, seed: int):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=max(1024, context),
            n_embd=192,
            n_layer=8,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = GPT2LMHeadModel(config)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.inner.transformer.h

    def init_state(self, batch: int) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.inner.config)

    def forward(
        self, tokens: Tensor, state: Any = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        out = self.inner(tokens, past_key_values=state, use_cache=state is not None)
        return out.logits, out.past_key_values


def make(name: str, config: BenchModel, device: torch.device) -> nn.Module:
    """The contestant of that name, with weights from the seed."""
    if name == "gpt2":
        model = TransformersGPT2(config.vocab_size, 2 * config.seq_len, config.seed).to(device)
    else:
        spec, backend = (config.model, name) if name == "reference" else (name, "auto")
        model = build(
            spec, vocab_size=config.vocab_size, backend=backend, device=device, seed=config.seed
        )
    if config.compile:
        for block in model.blocks:  # pyright: ignore
            block.compile()
    return model


def parity(config: BenchModel, device: torch.device) -> tuple[float, Verdict]:
    """Largest relative RMS difference to the reference loops in the logits and in the gradient.

    Both are compared in fp32 under the same noise on every weight, because a fresh model may hide
    its mixers behind projections that start at zero.
    """
    plain = replace(config, compile=False)
    own, reference = (
        _logits_and_gradient(make(name, plain, device), plain.vocab_size, device)
        for name in (config.model, "reference")
    )
    error = max(relative_rms(x, oracle) for x, oracle in zip(own, reference, strict=True))
    return error, decide(exact(error), THRESHOLDS["G1", "pieces against whole"])


def _logits_and_gradient(
    model: nn.Module, vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator).to(device)
    batch = random_batch(vocab_size, *PARITY_SHAPE, device)
    _, logits = Training(model, device).forward_backward(batch)
    return logits, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
