"""How tokens fall into the chunks of SSD, and which of them a reset keeps apart.

Letters: batch b, chunk c, group g, head of the group r, token of the chunk l (as a pair: t and
s), and the sizes p and n. B and C belong to a group, so products with them run over all its heads
at once, on columns rp.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CHUNK = 32
"""Most tokens in a chunk, for head and state sizes near 64 on a CPU."""
LONG = 64
"""The same for mild decays: the fastest choice where they allow it."""


def chunks(tensor: Tensor, groups: int, longest: int = CHUNK) -> Tensor:
    """[B, T, X, D] -> [b c g l r d], a view unless T needs padding with zeros."""
    batch, steps, heads, size = tensor.shape
    count = -(-steps // longest)
    length = -(-steps // count)
    if count * length > steps:
        tensor = F.pad(tensor, (0, 0, 0, 0, 0, count * length - steps))
    return tensor.view(batch, count, length, groups, heads // groups, size).transpose(2, 3)


def tokens(tensor: Tensor, steps: int) -> Tensor:
    """The inverse of `chunks`."""
    return tensor.transpose(2, 3).flatten(1, 2).flatten(2, 3)[:, :steps]


def by_group(state: Tensor, groups: int) -> Tensor:
    """[B, H, P, N] -> [b g rp n]."""
    return state.unflatten(1, (groups, -1)).flatten(2, 3)


def documents(reset: Tensor) -> Tensor:
    """How many resets a chunk has had up to each of its tokens [b c 1 l 1]."""
    return chunks(reset[..., None, None], 1)[..., 0].cumsum(3)


def states_shape(x: Tensor, B: Tensor) -> tuple[int, int, int, int, int]:
    """Of a state a chunk of at most CHUNK [b c g rp n], for x [B, T, H, P] and B [B, T, G, N]."""
    batch, steps, heads, size = x.shape
    return batch, -(-steps // CHUNK), B.shape[2], heads // B.shape[2] * size, B.shape[3]
