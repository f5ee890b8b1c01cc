"""The models of a race: ours, ours on other forms of the recurrences, GPT-2, any model by name."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.bench import peers
from groundthink.bench.config import BenchModel
from groundthink.bench.work import autocast, random_batch
from groundthink.data.stream import Batch
from groundthink.errors import UserError
from groundthink.layers.attention import Attention
from groundthink.models.base import LanguageModel
from groundthink.models.build import as_config, build
from groundthink.models.config import ModelConfig
from groundthink.ops.ssd import BACKENDS as SSD_BACKENDS
from groundthink.ops.testing import relative_rms
from groundthink.ops.wkv6 import BACKENDS as WKV6_BACKENDS
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.thresholds import THRESHOLDS
from groundthink.verdicts.verdict import Verdict, decide

COMPILE = "+compile"
PEERS = "peers"
PARITY_SHAPE = (1, 96)  # crosses the chunk boundaries of both recurrences


def require(name: str) -> None:
    """Raise UserError unless `name` is a contestant that can run here."""
    plain = name.removesuffix(COMPILE)
    if plain == "gpt2" and find_spec("transformers") is None:
        raise UserError("against gpt2 needs transformers: pip install transformers")
    if plain == PEERS and (lines := [line for x in peers.SOURCES if (line := peers.missing(x))]):
        raise UserError("; ".join(lines))
    if plain not in ("gpt2", PEERS) and plain not in WKV6_BACKENDS:
        as_config(plain)


class TransformersGPT2(nn.Module):
    """GPT-2 of transformers, 192 wide, 8 layers, 4 heads, no dropout, as one of our models.

    Its state is the key-value cache, which it fills only where it is given one.
    """

    recurrent = False

    def __init__(self, vocab_size: int, context: int, seed: int):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.config = ModelConfig(
            name="gpt2", layout="gpt2", d_model=192, n_layers=8, vocab_size=vocab_size
        )
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

    @property
    def head(self) -> nn.Module:
        return self.inner.lm_head

    def init_state(self, batch: int) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.inner.config)

    def features(
        self, tokens: Tensor, state: Any = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        out = self.inner.transformer(tokens, past_key_values=state, use_cache=state is not None)
        return out.last_hidden_state, out.past_key_values

    def forward(
        self, tokens: Tensor, state: Any = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        x, state = self.features(tokens, state)
        return self.head(x), state


def make(name: str, config: BenchModel, device: torch.device) -> nn.Module:
    """The contestant of that name, with weights from the seed.

    A backend's name is the model with its recurrences on that backend, `peers` with those of other
    projects, `gpt2` the one of transformers; anything may end in +compile.
    """
    plain = name.removesuffix(COMPILE)
    context = 2 * config.seq_len
    if plain == "gpt2":
        model = TransformersGPT2(config.vocab_size, context, config.seed).to(device)
    else:
        if plain == PEERS:
            enter_peers()
        inside = plain in WKV6_BACKENDS
        spec = as_config(config.model if inside else plain)
        spec = replace(spec, context_length=max(spec.context_length, context))
        model = build(
            spec,
            vocab_size=config.vocab_size,
            backend=plain if inside else "auto",
            device=device,
            seed=config.seed,
        )
        if not model.recurrent:
            without_resets(model)
    if config.compile or name.endswith(COMPILE):
        for block in model.blocks:  # pyright: ignore
            block.compile()
    return model


def without_resets(model: LanguageModel) -> None:
    """Let attention look across documents: without a mask it takes its fastest form."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, args: (*args[:2], None))


def enter_peers() -> None:
    """Give both recurrences a backend `peers`: the operators of other projects.

    They know no resets, which is less work than ours do. Short texts and single tokens go to the
    operators that the layers of those projects take for them.
    """
    chunk, recurrent = peers.fla_chunk(), peers.fla_recurrent()
    scan, step = peers.mamba(), peers.mamba_step()

    def wkv6(r, k, v, w, u, state, reset, raw):
        log_w = -w.float().exp() if raw else w
        y, state = (recurrent if r.shape[1] <= 64 else chunk)(r, k, v, log_w, u, state)
        return y.to(v.dtype), state

    def ssd(x, dt, A, B, C, D, state, reset):
        alone = x.shape[1] == 1 and state is not None and not torch.is_grad_enabled()
        return (step if alone else scan)(x, dt, A, B, C, D, state)

    for table, op in ((WKV6_BACKENDS, wkv6), (SSD_BACKENDS, ssd)):
        rest = {name: form for name, form in table.items() if name != PEERS}
        table.clear()
        table.update({PEERS: op, **rest})  # the first of a table is what `auto` takes last


def parity(name: str, config: BenchModel, device: torch.device) -> tuple[float, Verdict]:
    """How far a form of the model is from our plain ones, and the verdict.

    The measure is the reference loops on a short text; for the peers our chunked form on a batch
    of the config, because their autotuners keep for all shapes what was best for the first.
    In fp32 the distance itself; in half precision the distance to the measure in fp32 over that of
    the measure in half precision.
    """
    config = replace(config, compile=False)
    exactly = replace(config, precision="fp32")
    plain = "chunked" if name == PEERS else "reference"
    error = distance(name, plain, config, exactly, device)
    if config.precision == "fp32":
        return error, decide(exact(error), THRESHOLDS["G1", "pieces against whole"])
    error /= distance(plain, plain, config, exactly, device)
    return error, decide(exact(error), THRESHOLDS["parity", "half model over reference"])


def distance(
    name: str, plain: str, config: BenchModel, other: BenchModel, device: torch.device
) -> float:
    """Largest relative RMS difference, in the logits and in the gradient, of a contestant and a
    plain form with another config.

    Both are compared under the same noise on every weight, because a fresh model may hide its
    mixers behind projections that start at zero.
    """
    shape = PARITY_SHAPE if plain == "reference" else (config.batch_size, config.seq_len)
    batch = random_batch(config.vocab_size, *shape)
    batch = batch._replace(reset=torch.zeros_like(batch.reset))
    found = logits_and_gradient(make(name, config, device), batch, device, config.precision)
    truth = logits_and_gradient(make(plain, other, device), batch, device, other.precision)
    return max(relative_rms(x, y) for x, y in zip(found, truth, strict=True))


@torch.no_grad()
def add_noise(model: nn.Module) -> None:
    """Give every weight some noise, always the same: published inits leave mixers silent."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def logits_and_gradient(
    model: nn.Module, batch: Batch, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V], and the gradient of their mean loss in one row, after noise on weights."""
    add_noise(model)
    tokens, targets, reset = (x.to(device) for x in batch)
    with autocast(device, precision):
        logits, _ = model(tokens, None, reset)
    F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logits.detach(), gradient


def blocks(name: str, layers: int, config: BenchModel, device: torch.device) -> nn.Module:
    """So many blocks of the model, or of the model on the peers' operators, without their channel
    mixing."""
    spec = replace(as_config(config.model), n_layers=layers, gate_init_layers=(), ffn="none")
    backend = PEERS if name == PEERS else "auto"
    return build(spec, vocab_size=config.vocab_size, backend=backend, device=device)
