"""What resets separate inside the chunks of a recurrence. Few chunks hold one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_known = WeakTensorKeyDictionary()


def once(reset: Tensor, key: Hashable, make: Callable[[], Any]) -> Any:
    """make(), or what it gave for these resets before: the layers of a model share them."""
    if reset.is_inference():  # no version tells whether it has changed
        return make()
    entry = _known.get(reset)
    if entry is None or entry[0] != reset._version:
        entry = _known[reset] = reset._version, {}
    made = entry[1]
    if key not in made:
        made[key] = make()
    return made[key]


class Hidden(NamedTuple):
    """Places in the rows that hold a reset."""

    mask: Tensor
    """[M, L, 1 or L]."""
    at: tuple[Tensor, ...]
    """The same places as indices into all rows."""


class Cuts(NamedTuple):
    """Products run on rows [G, L, .], G = chunks * heads; M of them hold a reset."""

    at: Tensor
    """[M] which rows."""
    unseen: Hidden
    """Tokens that no longer see the state that entered the chunk."""
    lost: Hidden
    """Tokens whose writes do not reach the end of the chunk."""
    apart: Hidden
    """Pairs of tokens with a reset between them."""
    whole: Tensor
    """bool [..., 1, 1, 1] chunks without a reset, which the state passes."""

    @classmethod
    def of(cls, reset: Tensor, heads: int) -> Cuts:
        """From the resets [..., L] of the chunks, in the order of the rows."""
        cut = reset.any(-1)
        chunk = cut.flatten().nonzero()  # [M / heads, 1]
        count = reset.flatten(0, -2)[chunk.squeeze(1)].cumsum(1).repeat_interleave(heads, 0)
        at = (chunk * heads + torch.arange(heads, device=chunk.device)).flatten()

        def hidden(mask: Tensor) -> Hidden:
            row, *place = mask.nonzero(as_tuple=True)
            return Hidden(mask, (at[row], *place[: 1 if mask.shape[2] == 1 else 2]))

        return cls(
            at,
            unseen=hidden((count != 0)[..., None]),
            lost=hidden((count != count[:, -1:])[..., None]),
            apart=hidden(count[:, :, None] != count[:, None, :]),
            whole=~cut[..., None, None, None],
        )

    def sum_again(self, out: Tensor, a: Tensor, b: Tensor, hidden: Hidden) -> None:
        """out = a^T b without the tokens that are hidden."""
        out[self.at] = torch.bmm(a[self.at].mT, b[self.at].masked_fill(hidden.mask, 0))


def clear(x: Tensor, hidden: Hidden) -> None:
    """Zero what is hidden in rows."""
    x[hidden.at] = 0
