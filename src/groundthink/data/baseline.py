"""What counting alone achieves: cross entropies that a trained model has to beat."""

from __future__ import annotations

import numpy as np

from groundthink.data.packed import Packed

CHUNK = 1 << 22  # tokens counted at a time
DENSE = 1 << 22  # pairs of ids up to which a full table is counted


def ngram_baselines(train: Packed, val: Packed, vocab_size: int) -> dict[str, float]:
    """Cross entropy on `val`, in nats per token, of three models counted on `train`.

    uniform is log V. unigram is add-one: (n(t) + 1) / (N + V). bigram is interpolated with the
    unigram: (n(s, t) + d(s) p(t)) / (n(s) + d(s)), where d(s) is the number of different
    tokens seen after s (Witten and Bell 1991, method C); it has no parameter to tune. Every
    token of `val` but the first is scored, as in `stream.evaluation`.
    """
    seen = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(train.tokens), CHUNK):
        seen += np.bincount(train.tokens[start : start + CHUNK], minlength=vocab_size)
    unigram = (seen + 1) / (seen.sum() + vocab_size)

    pairs, counts = _pairs(train.tokens, vocab_size)
    followed = np.bincount(pairs // vocab_size, weights=counts, minlength=vocab_size)
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size)

    val_pairs, weights = _pairs(val.tokens, vocab_size)
    first, second = np.divmod(val_pairs, vocab_size)
    at = np.minimum(np.searchsorted(pairs, val_pairs), len(pairs) - 1)
    known = np.where(pairs[at] == val_pairs, counts[at], 0)
    smoothed = (known + followers[first] * unigram[second]) / np.maximum(
        followed[first] + followers[first], 1
    )
    bigram = np.where(followers[first] > 0, smoothed, unigram[second])
    return {
        "uniform": float(np.log(vocab_size)),
        "unigram": float(-np.average(np.log(unigram[second]), weights=weights)),
        "bigram": float(-np.average(np.log(bigram), weights=weights)),
    }


def _pairs(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes first * vocab_size + second of the neighbours in a text, sorted, and their counts."""
    dense = np.zeros(vocab_size**2 if vocab_size**2 <= DENSE else 0, dtype=np.int64)
    found = []
    for start in range(0, len(tokens) - 1, CHUNK):
        part = tokens[start : start + CHUNK + 1].astype(np.int64)
        codes = part[:-1] * vocab_size + part[1:]
        if len(dense):
            dense += np.bincount(codes, minlength=len(dense))
        else:
            found.append(np.unique(codes, return_counts=True))
    if len(dense):
        return np.flatnonzero(dense), dense[dense > 0]
    codes, counts = (np.concatenate(part) for part in zip(*found, strict=True))
    merged, inverse = np.unique(codes, return_inverse=True)
    return merged, np.bincount(inverse, weights=counts).astype(np.int64)
