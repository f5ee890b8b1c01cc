"""Token shift: every token sees the one before it."""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift(x: Tensor, last: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The previous token's input (Peng et al. 2024, "Eagle and Finch", section 4.1).

    Args:
        x: input [B, T, C], T >= 1.
        last: input of the token before the first [B, C].
        reset: bool [B, T]; where true the token has no predecessor and sees zeros.

    Returns:
        The shifted input [B, T, C] in the dtype of x, and the last input [B, C] in the dtype of
        `last`: a copy, so that a carried state does not keep the whole of x alive.
    """
    shifted = torch.cat((last[:, None].to(x.dtype), x[:, :-1]), dim=1)
    if reset is not None:
        shifted = shifted.masked_fill(reset[..., None], 0)
    return shifted, x[:, -1].to(last.dtype, copy=True)
