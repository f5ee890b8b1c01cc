"""Model names: VARIANT-SIZE, composed rather than listed, and the aliases of the original study."""

from __future__ import annotations

from dataclasses import replace

from groundthink.errors import unknown
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
    "mamba2": ModelConfig(layout="mamba2", ffn="none", norm_eps=1e-5, embed_norm=False, init="published"),
    "gpt2": ModelConfig(layout="gpt2", norm="layer", norm_eps=1e-5, embed_norm=False, init="published"),
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
}
"""d_model, n_layers, head size (RWKV-6 heads; attention heads for gpt2) of each size."""

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
        raise unknown("model", name, [*names(), *ALIASES])
    base = VARIANTS[variant]
    d_model, n_layers, head = SHAPES.get(variant, SHAPES["hybrid"])[size]
    shape = {"attention_heads": head} if variant == "gpt2" else {"rwkv_head_size": head}
    return replace(base, name=full, d_model=d_model, n_layers=n_layers, **shape)
