"""What a linear probe can read from vectors: held-out V-information, in bits.

Xu et al. 2020, "A theory of usable information under computational constraints": the information
that vectors X hold about a label Y for a family of probes is the cross-entropy of the best probe
that sees nothing minus that of the best probe that sees X. It bounds the mutual information from
below, needs no density estimate, and can be negative on held-out rows.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

FOLDS = 5
STEPS = 40
"""Steps of a fit; it stops early at the best one on rows that it does not train on."""
RIDGE = 1e-3
WILDEST = 3.0
"""Standard deviations that an outlier counts as."""
WIDEST = 64
"""Most dimensions that a probe reads."""
PER_DIM = 20
"""Rows that a probe needs for each dimension it reads."""
BUCKETS = 256
"""Size of a sketch."""


SHARD = 256
"""Most texts whose states are held at once; probes are fitted to the texts of one shard."""


def shards(texts: int) -> list[slice]:
    """Shards of as many texts, of like size."""
    count = -(-texts // SHARD)
    edges = [texts * i // count for i in range(count + 1)]
    return [slice(*ends) for ends in pairwise(edges)]


def dims_for(rows: int) -> int:
    """Dimensions that a probe on that many rows may read."""
    return min(WIDEST, rows // PER_DIM)


def sketch(x: Tensor, size: int = BUCKETS) -> Tensor:
    """Rows [n, m] -> [n, size] by signed sums of random groups of columns; m <= size is kept.

    Inner products keep their expectation (Charikar et al. 2002, "Finding frequent items in data
    streams"), and no [m, size] matrix is held.
    """
    x = x.flatten(1).float()
    m = x.shape[1]
    if m <= size:
        return x
    order, signs = (t.to(x.device) for t in _grouping(m))
    return F.pad(x.index_select(1, order) * signs, (0, -m % size)).unflatten(1, (-1, size)).sum(1)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for whoever asks next
def _grouping(m: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m)
    order = torch.randperm(m, generator=generator)
    return order, torch.randint(0, 2, (m,), generator=generator) * 2.0 - 1.0


def leading(x: Tensor, dims: int, groups: Tensor | None = None) -> Tensor:
    """The components [p, n, dims] of x [p, n, m] along the directions of largest variance.

    No label is looked at. With `groups` [n] the variance is that within groups alone: rows of a
    group that differ in one planted thing show the directions in which that thing moves x.
    """
    centred = x - x.mean(1, keepdim=True)
    spread = centred if groups is None else x - group_means(x, groups)
    _, vectors = torch.linalg.eigh(spread.mT @ spread)  # in ascending order
    return centred @ vectors[..., -dims:]


def group_means(x: Tensor, groups: Tensor) -> Tensor:
    """Every row of x [p, n, m] replaced by the mean of its group."""
    index = groups.unique(return_inverse=True)[1].to(x.device)
    sums = x.new_zeros(x.shape[0], int(index.max()) + 1, x.shape[2]).index_add_(1, index, x)
    return (sums / index.bincount()[:, None])[:, index]


def information(*sources: Tensor, y: Tensor, groups: Tensor, classes: int) -> Tensor:
    """Pointwise held-out V-information of linear probes, for p problems at once.

    Every row is scored by a probe that saw no row of its group: three fifths of the groups train
    it, one fifth stops its training, one is scored.

    Args:
        sources: vectors [p, n, d] each, of one source or of several: the probe of the last one
            goes on from the best of those before it, so that more to read is no handicap.
        y: labels int64 [n] or [p, n], below `classes`.
        groups: int64 [n], the document of each row.

    Returns:
        Bits [sources, p, n]: log2 of the probe's over the null probe's probability of the true
        label. Its mean is the V-information.
    """
    p, n, _ = sources[0].shape
    y = y.to(sources[0].device).expand(p, n)
    fold = folds(groups).to(y.device)
    bits = sources[0].new_empty(len(sources), p, n)
    for part in range(FOLDS):
        test, stop = fold == part, fold == (part + 1) % FOLDS
        train = ~(test | stop)
        counts = F.one_hot(y[:, ~test], classes).sum(1, keepdim=True) + 1.0
        null = (counts / counts.sum(-1, keepdim=True)).log().expand(-1, n, -1)
        best, lowest = null, _loss(null[:, stop], y[:, stop])
        for i, x in enumerate(sources):
            start = best if i == len(sources) - 1 else null
            logits = start + _fit(_standardised(x, train), y, start, train, stop)
            bits[i][:, test] = (_log_prob(logits, y) - _log_prob(null, y))[:, test]
            loss = _loss(logits[:, stop], y[:, stop])
            best = torch.where((loss < lowest)[:, None, None], logits, best)
            lowest = torch.minimum(loss, lowest)
    return bits / math.log(2)


def folds(groups: Tensor) -> Tensor:
    """A fold 0..FOLDS-1 for each row; a group is in one fold, and folds have as many groups."""
    names, index = groups.cpu().unique(return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return (order % FOLDS)[index]


def _standardised(x: Tensor, train: Tensor) -> Tensor:
    """x in units of its training rows, cut at `WILDEST` of them, and a column of ones."""
    mean, std = x[:, train].mean(1, keepdim=True), x[:, train].std(1, keepdim=True)
    z = (x - mean) / std.clamp(min=torch.finfo(x.dtype).tiny)
    return F.pad(z.clamp(-WILDEST, WILDEST), (0, 1), value=1.0)


def _fit(x: Tensor, y: Tensor, start: Tensor, train: Tensor, stop: Tensor) -> Tensor:
    """What a ridge softmax regression on x [p, n, d] adds to the logits `start` [p, n, classes].

    Accelerated steps under the fixed curvature bound of the softmax (Boehning 1992, "Multinomial
    logistic regression algorithm"): no line search, and the same steps in every basis of x.
    """
    seen, held = x[:, train], x[:, stop]
    at, at_held, y_held = start[:, train], start[:, stop], y[:, stop]
    target = F.one_hot(y[:, train], start.shape[-1]).to(x.dtype)
    n, d = seen.shape[1:]
    bound = seen.mT @ seen / n + 2 * RIDGE * torch.eye(d, dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(bound)
    weight = ahead = best = x.new_zeros(x.shape[0], d, start.shape[-1])
    lowest = _loss(at_held, y_held)
    for step in range(STEPS):
        error = torch.softmax(seen @ ahead + at, -1) - target
        slope = seen.mT @ error / n + RIDGE * ahead
        new = ahead - 2 * torch.cholesky_solve(slope, factor)
        ahead, weight = new + step / (step + 3) * (new - weight), new
        loss = _loss(held @ weight + at_held, y_held)
        best = torch.where((loss < lowest)[:, None, None], weight, best)
        lowest = torch.minimum(loss, lowest)
    return x @ best


def _log_prob(logits: Tensor, y: Tensor) -> Tensor:
    return -F.cross_entropy(logits.movedim(-1, 1), y, reduction="none")


def _loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean loss of each problem [p]."""
    return -_log_prob(logits, y).mean(1)
