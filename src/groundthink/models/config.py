"""What a model is: one frozen config for every layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape, mixers and fusion of a language model."""

    name: str = "gf-tiny"
    """VARIANT-SIZE name that the other fields were filled from; a label once they are resolved."""
    vocab_size: int = 97
    """Number of token ids."""
    d_model: int = 64
    """Width of the residual stream."""
    n_layers: int = 4
    """Number of blocks."""
    layout: str = "parallel"
    """parallel, rwkv6, mamba2, attention, gpt2, or a pattern of P, R, M and A that repeats to fill
    the layers, for example "R M*10 R"."""
    fusion: str = "gf"
    """How a parallel block fuses its branches (groundthink list fusions)."""
    gate_init: float = 0.5
    """RWKV share of the fusion at step 0: 0 is all Mamba, 1 all RWKV."""
    gate_init_layers: tuple[float, ...] = ()
    """RWKV share at step 0 for each layer; overrides gate_init."""
    branch_norm: Literal["none", "rms"] = "rms"
    """RMS-normalise both branch outputs before fusion, so that fusion alone sets the balance."""
    mamba_direct: float = 0.0
    """Initial per-channel gain of a path from Mamba to the residual stream that no gate can close;
    0 builds none."""
    rwkv_head_size: int = 32
    """Key and value size of an RWKV-6 head."""
    mamba_state_size: int = 64
    """N, the state size of a Mamba-2 head."""
    mamba_head_size: int = 64
    """P, the channel count of a Mamba-2 head."""
    mamba_expand: int = 2
    """Inner width of Mamba-2 over d_model."""
    mamba_groups: int = 1
    """Groups of heads that share B and C."""
    mamba_conv: int = 4
    """Width of the causal convolution of Mamba-2."""
    attention_heads: int = 4
    """Heads of attention blocks and of GPT-2."""
    context_length: int = 1024
    """Positions that GPT-2 knows; recurrent layouts have no limit."""
    ffn: Literal["gelu", "rwkv", "none"] = "gelu"
    """Channel mixing of a block: GELU MLP, RWKV-6 channel mixing, or none."""
    ffn_mult: float = 4.0
    """Hidden width of the channel mixing over d_model."""
    norm: Literal["rms", "layer"] = "rms"
    """Norm before the mixers, before the channel mixing and before the head."""
    norm_eps: float = 1e-6
    """Epsilon of those norms."""
    embed_norm: bool = True
    """Normalise the embedding (ln0 of RWKV)."""
    tie_embeddings: bool = True
    """Head shares the embedding matrix."""
    init: Literal["published", "balanced"] = "balanced"
    """published: each mixer as its paper has it; balanced: output projections of equal scale."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens that together hold this probability."""
    repetition_penalty: float = 1.0
    """Weakens tokens seen in the last 256 (Keskar et al. 2019); 1 is none."""
    seed: int = 0
    """Seed of the draw at every position, so that a continued text is the text itself."""
