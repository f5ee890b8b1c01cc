"""Model names: VARIANT-SIZE, composed rather than listed, and the aliases of the original study."""

from __future__ import annotations

import difflib
from dataclasses import replace

from groundthink.errors import UserError
from groundthink.models.config import ModelConfig

HYBRID = ModelConfig()
VARIANTS: dict[str, ModelConfig] = {
    "hy": replace(HYBRID, fusion="hy"),
    "gf": HYBRID,
    "gf-mh": replace(HYBRID, gate_init=0.3),
    "gf-rh": replace(HYBRID, gate_init=0.7),
    "gf-xm": replace(HYBRID, gate_init=0.03),
    "gf-xr": replace(HYBRID, gate_init=0.97),
    "hgf": replace(HYBRID, fusion="hgf"),
    "hgf-mh": replace(HYBRID, fusion="hgf", gate_init=0.3),
    "hgf-rh": replace(HYBRID, fusion="hgf", gate_init=0.7),
    "ws": replace(HYBRID, fusion="ws"),
    "rf": replace(HYBRID, fusion="rf"),
    "cp": replace(HYBRID, fusion="cp"),
    "rwkv6": ModelConfig(
        layout="rwkv6",
        norm="layer",
        norm_eps=1e-5,
        ffn="rwkv",
        ffn_mult=3.5,
        tie_embeddings=False,
        init="published",
    ),
    "mamba2": ModelConfig(
        layout="mamba2", ffn="none", norm_eps=1e-5, embed_norm=False, init="published"
    ),
    "gpt2": ModelConfig(
        layout="gpt2", norm="layer", norm_eps=1e-5, embed_norm=False, init="published"
    ),
}
"""What a variant fixes; its size fixes the rest."""

SIZES = ("tiny", "5m", "6m", "8m", "30m", "125m")
SHAPES: dict[str, dict[str, tuple[int, int, int]]] = {
    "hybrid": {
        "tiny": (64, 4, 32),
        "5m": (128, 8, 32),
        "6m": (160, 10, 32),
        "8m": (192, 8, 32),
        "30m": (384, 10, 64),
        "125m": (768, 11, 64),
    },
    "rwkv6": {
        "tiny": (80, 4, 16),
        "5m": (160, 8, 32),
        "6m": (192, 10, 64),
        "8m": (224, 9, 32),
        "30m": (448, 11, 64),
        "125m": (896, 12, 64),
    },
    "mamba2": {
        "tiny": (64, 14, 64),
        "5m": (160, 18, 64),
        "6m": (192, 23, 64),
        "8m": (256, 15, 64),
        "30m": (512, 18, 64),
        "125m": (1024, 20, 64),
    },
    "gpt2": {
        "tiny": (80, 6, 20),
        "5m": (192, 7, 48),
        "6m": (192, 13, 48),
        "8m": (224, 11, 32),
        "30m": (384, 17, 64),
        "125m": (768, 18, 64),
    },
}
"""d_model, n_layers and head size of each size. The pure models and GPT-2 have as many parameters
outside the embedding as the hybrid: GPT-2 within 3 %, the others within 4 %."""
HEAD_FIELD = {"rwkv6": "rwkv_head_size", "mamba2": "mamba_head_size"}

ALIASES = {
    "tiny": "hy-tiny",
    "1m": "hy-tiny",
    "small": "hy-5m",
    "3.5m": "gf-mh-5m",
    "5m": "hy-5m",
    "6m": "hy-6m",
    "medium": "gf-mh-8m",
    "8m": "gf-mh-8m",
    "large": "gf-mh-30m",
    "30m": "gf-mh-30m",
    "xl": "gf-mh-125m",
    "125m": "gf-mh-125m",
    "gpt2-3m": "gpt2-5m",
    **{variant: f"{variant}-5m" for variant in VARIANTS},
}
"""The study's bare names; a bare variant is that variant at 5m."""


def names() -> list[str]:
    """Every VARIANT-SIZE name."""
    return [f"{variant}-{size}" for variant in VARIANTS for size in SIZES]


def resolve(name: str) -> ModelConfig:
    """The config a model name stands for; case does not matter.

    Raises:
        UserError: no such variant, size or alias (with near names).
    """
    full = ALIASES.get(name.lower(), name.lower())
    variant, _, size = full.rpartition("-")
    if variant not in VARIANTS or size not in SIZES:
        near = difflib.get_close_matches(full, [*names(), *ALIASES], n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f"unknown model {name!r}; {hint}a name is VARIANT-SIZE: "
            f"{', '.join(VARIANTS)}; {', '.join(SIZES)}"
        )
    base = VARIANTS[variant]
    d_model, n_layers, head = SHAPES.get(variant, SHAPES["hybrid"])[size]
    shape = (
        {"attention_heads": d_model // head}
        if variant == "gpt2"
        else {HEAD_FIELD.get(variant, "rwkv_head_size"): head}
    )
    return replace(base, name=full, d_model=d_model, n_layers=n_layers, **shape)
