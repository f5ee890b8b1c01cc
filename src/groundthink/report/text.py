"""Numbers and untrusted text as they appear on a page."""

from __future__ import annotations

import html
import math
import re
from typing import Any

NONE = "–"

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROLS |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def esc(value: Any) -> str:
    """Any value as text that is safe inside HTML elements and attributes.

    Control characters become their visible pictures and lone surrogates the replacement sign, so
    that the page is valid UTF-8 whatever a model wrote.
    """
    shown = _SURROGATE.sub("\ufffd", str(value)).translate(_CONTROLS)
    return html.escape(shown, quote=True)


def prose(text: str) -> str:
    """`esc` for sentences: the names of the two mixers never break at their hyphen."""
    for name in ("RWKV-6", "Mamba-2"):
        text = text.replace(name, name.replace("-", "-\u2060"))
    return esc(text)


def sig(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant figures: 2.31, 1,240, 3.1 × 10⁻⁴."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 < exponent < 6:
        return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")
    mantissa = f"{value / 10**exponent:.{digits - 1}f}".rstrip("0").rstrip(".")
    return f"{mantissa.replace('-', '−')}\u00a0×\u00a010{str(exponent).translate(_SUPERSCRIPT)}"


def short(value: float | None) -> str:
    """A number that someone chose, without trailing zeros: 0.3, 0.002, 3."""
    shown = sig(value)
    return shown.rstrip("0").rstrip(".") if "." in shown and "×" not in shown else shown


def count(value: float | None) -> str:
    """A whole number with thousands: 2,000."""
    return NONE if value is None else f"{round(value):,}"


def compact(value: float | None) -> str:
    """A large number in three figures at most: 474k, 5.6M, 124M."""
    if value is None:
        return NONE
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.1f}{unit}"
    return sig(value)


def size(value: float | None) -> str:
    """Bytes: 33.5 kB, 1.2 MB."""
    if value is None:
        return NONE
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units: 3 min 12 s."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def percent(share: float | None) -> str:
    """A share of one: 61 %, 0.039 %."""
    if share is None:
        return NONE
    return f"{100 * share:.0f}\u00a0%" if share >= 0.1 else f"{sig(100 * share, 2)}\u00a0%"
