"""What resets separate inside the chunks of a recurrence. Few chunks hold one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Cuts(NamedTuple):
    """Products run on rows [G, L, .], G = chunks * heads; M of them hold a reset."""

    at: Tensor
    """[M] which rows."""
    unseen: Tensor
    """[M, L, 1] tokens that no longer see the state that entered the chunk."""
    lost: Tensor
    """[M, L, 1] tokens whose writes do not reach the end of the chunk."""
    apart: Tensor
    """[M, L, L] pairs of tokens with a reset between them."""
    whole: Tensor
    """bool [..., 1, 1, 1] chunks without a reset, which the state passes."""

    @classmethod
    def of(cls, reset: Tensor, heads: int) -> Cuts:
        """From the resets [..., L] of the chunks, in the order of the rows."""
        cut = reset.any(-1)
        chunk = cut.flatten().nonzero()  # [M / heads, 1]
        count = reset.flatten(0, -2)[chunk.squeeze(1)].cumsum(1).repeat_interleave(heads, 0)
        return cls(
            at=(chunk * heads + torch.arange(heads, device=chunk.device)).flatten(),
            unseen=(count != 0)[..., None],
            lost=(count != count[:, -1:])[..., None],
            apart=count[:, :, None] != count[:, None, :],
            whole=~cut[..., None, None, None],
        )

    def clear(self, x: Tensor, mask: Tensor) -> None:
        """Zero what a mask hides in rows."""
        x[self.at] = x[self.at].masked_fill(mask, 0)

    def sum_again(self, out: Tensor, a: Tensor, b: Tensor, mask: Tensor) -> None:
        """out = a^T b without the tokens that the mask hides."""
        out[self.at] = torch.bmm(a[self.at].mT, b[self.at].masked_fill(mask, 0))
