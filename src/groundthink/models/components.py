"""Which component of a model a parameter or module belongs to, by its dotted name."""

from __future__ import annotations

BRANCHES = ("rwkv6", "mamba2")
COMPONENTS = (*BRANCHES, "attention", "fusion", "ffn")


def component(name: str) -> str:
    """The component that owns it, the part of a block under its number; norms and embeddings are
    "other"."""
    owner = name.split(".")[2:3] if name.startswith("blocks.") else []
    return owner[0] if owner and owner[0] in COMPONENTS else "other"


def branch(name: str) -> str:
    """The branch that owns it, or "other": branch norms and fusions belong to neither."""
    owner = component(name)
    return owner if owner in BRANCHES else "other"
