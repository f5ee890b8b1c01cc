"""Which document is held out: a plan that depends on the documents alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


def content_hash(text: str) -> bytes:
    """Eight bytes that stand for a text in the order of the split."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


@dataclass(frozen=True)
class Plan:
    """Where each document goes.

    Attributes:
        splits: train, val or test per document.
        how: the rule in words.
        cut: index of the document whose tail is held out where whole documents cannot give the
            fractions.
        tail: (split, share of the cut document) for each split held out of it, in order.
    """

    splits: list[str]
    how: str
    cut: int = -1
    tail: tuple[tuple[str, float], ...] = ()

    def parts(self, index: int, text: str) -> Iterator[tuple[str, str]]:
        """(split, text) of a document, in order."""
        if index != self.cut:
            yield self.splits[index], text
            return
        rests = [sum(share for _, share in self.tail[i:]) for i in range(len(self.tail))]
        edges = [0, *(_boundary(text, 1 - rest) for rest in rests), len(text)]
        names = [self.splits[index], *(split for split, _ in self.tail)]
        for split, (start, end) in zip(names, pairwise(edges), strict=True):
            yield split, text[start:end]


def plan(
    named: Sequence[str], hashes: Sequence[bytes], sizes: Sequence[int], val: float, test: float
) -> Plan:
    """Hold out documents until their bytes come near the fractions `val` and `test`.

    Documents are taken in the order of their content hashes, so the choice depends on no seed,
    process or file order, and identical documents share a split. Splits that the source names
    are honoured when it names a train split too; a split it does not name is taken from train.
    Where a document is larger than a whole split, the tail of the largest is held out instead.

    Args:
        named: split that the source names per document, or an empty string.
        hashes: `content_hash` per document.
        sizes: UTF-8 bytes per document.
    """
    names = {*named} - {""} if "train" in named else set()
    splits = [name if name in names else "train" for name in named]
    pool = {h: 0 for h, split in sorted(zip(hashes, splits, strict=True)) if split == "train"}
    for h, size, split in zip(hashes, sizes, splits, strict=True):
        if split == "train":
            pool[h] += size
    total, chosen, tail = sum(pool.values()), {}, []
    for split, fraction in (("test", test), ("val", val)):
        if fraction and split not in names:
            taken = _take(pool, total * fraction)
            if taken:
                chosen |= dict.fromkeys(taken, split)
                pool = {h: size for h, size in pool.items() if h not in chosen}
            else:
                tail.append((split, total * fraction))
    splits = [chosen.get(h, s) if s == "train" else s for h, s in zip(hashes, splits, strict=True)]
    how = "by whole documents" if chosen or not names - {"train"} else "as the source names them"
    if not tail:
        return Plan(splits, how)
    cut = max((i for i, s in enumerate(splits) if s == "train"), key=lambda i: sizes[i])
    shares = tuple((split, size / sizes[cut]) for split, size in reversed(tail))
    return Plan(splits, "the tail of the largest document is held out", cut, shares)


def _take(pool: dict[bytes, int], target: float) -> list[bytes]:
    """Hashes, in order, whose sizes add up to within half of `target`; none if that fails."""
    taken, size = [], 0
    for h, more in pool.items():
        if size + more / 2 <= target:
            taken.append(h)
            size += more
    return taken if abs(size - target) <= target / 2 else []


def _boundary(text: str, share: float) -> int:
    """Where to cut near `share` of a text: after a paragraph, else after a line, else there."""
    at = round(len(text) * share)
    reach = len(text) // 50 + 200
    for mark in ("\n\n", "\n"):
        before = text.rfind(mark, max(at - reach, 0), at)
        if before >= 0 and at < len(text):
            return before + len(mark)
    return at
