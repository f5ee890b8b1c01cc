"""Reading the threshold text of a gate record back into numbers."""

from __future__ import annotations

import math
import re

Range = tuple[float, float]

_RANGE = re.compile(r"(?:(\S+)\.\.(\S+)|(>=|<=) (\S+)|(any)|(\S+))")


def ranges(text: str) -> tuple[Range, Range]:
    """(passes, warns) of a text such as "0.3..3 (warn 0.1..10)", "<= 0.1", "0" or "any"."""
    passes, _, warns = text.removesuffix(")").partition(" (warn ")
    return _range(passes), _range(warns or passes)


def _range(text: str) -> Range:
    match = _RANGE.fullmatch(text)
    assert match, f"not a threshold: {text!r}"
    low, high, sign, bound, anything, only = match.groups()
    if anything:
        return -math.inf, math.inf
    if sign:
        return (float(bound), math.inf) if sign == ">=" else (-math.inf, float(bound))
    return (float(low), float(high)) if low else (float(only), float(only))
