"""What a corpus is before it is tokenized: documents that can be read again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


class Document(NamedTuple):
    """One text; `split` is train, val or test where the source names it, else empty."""

    name: str
    text: str
    split: str = ""


@dataclass(frozen=True)
class Source:
    """A corpus: `read()` starts anew and gives the same documents in the same order each time."""

    name: str
    identity: Any
    """JSON that changes whenever the documents do; the cache is keyed by it."""
    read: Callable[[], Iterator[Document]]
    licence: str = ""
