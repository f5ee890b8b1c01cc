"""Layout strings -> the mixers of each block."""

from __future__ import annotations

import re

from groundthink.errors import UserError

WORDS = {"parallel": "P", "rwkv6": "R", "mamba2": "M", "attention": "A"}
MIXERS = {"P": ("rwkv6", "mamba2"), "R": ("rwkv6",), "M": ("mamba2",), "A": ("attention",)}


def expand(layout: str, n_layers: int) -> list[tuple[str, ...]]:
    """Mixer names of every block: "R M*10 R" at 12 layers is RWKV-6, ten Mamba-2, RWKV-6.

    A shorter pattern repeats until it fills the layers.

    Raises:
        UserError: the pattern cannot be read or does not divide the layers.
    """
    pattern = WORDS.get(layout.lower(), layout.upper())
    if not re.fullmatch(r"\s*([PRMA](\*\d+)?\s*)+", pattern):
        raise UserError(
            f"layout {layout!r} cannot be read; write {', '.join(WORDS)}, gpt2, or a pattern of "
            'P, R, M and A such as "R M*10 R"'
        )
    letters = "".join(
        letter * int(times or 1) for letter, times in re.findall(r"([PRMA])(?:\*(\d+))?", pattern)
    )
    if not letters or n_layers % len(letters):
        near = max(len(letters), round(n_layers / max(len(letters), 1)) * len(letters))
        raise UserError(
            f"layout {layout!r} has {len(letters)} blocks, not a divisor of n_layers {n_layers}; "
            f"the nearest that fits is {near}"
        )
    return [MIXERS[letter] for letter in letters * (n_layers // len(letters))]
