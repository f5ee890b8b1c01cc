"""Token shift: every token sees the one before it."""

from __future__ import annotations

from torch import Tensor

from groundthink.ops.shift.reference import previous


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
    return previous(x, last, reset), x[:, -1].to(last.dtype, copy=True)
