"""How two branches join the residual stream: their norms, the gate and the sum in one pass.

Letters: x is the residual stream, r and m are the outputs of RWKV-6 and Mamba-2, [..., C] each.
"""

from __future__ import annotations

from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.dispatch import check_shape
from groundthink.ops.fused import choose, full_precision
from groundthink.ops.fusion import eager, reference


def _kernels():
    from groundthink.ops.fusion import launch

    return launch


BACKENDS = {
    "token_gate": {
        "reference": reference.token_gate,
        "eager": eager.token_gate,
        "triton": lambda *args: _kernels().token_gate(*args),
    },
    "channel_gate": {
        "reference": reference.channel_gate,
        "triton": lambda *args: _kernels().channel_gate(*args),
    },
    "branch_gains": {
        "reference": reference.branch_gains,
        "triton": lambda *args: _kernels().branch_gains(*args),
    },
}


def token_gate(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One gate a token: ``x + a r' + (1 - a) m'``, ``a = sigmoid(weight [r'; m'] + bias)``.

    r' and m' are r and m after RMSNorm (Zhang and Sennrich 2019, eq. 4) with the weights norm_r
    and norm_m, or r and m themselves where these are None.

    Args:
        x: residual stream [..., C].
        r: RWKV-6 branch [..., C].
        m: Mamba-2 branch [..., C].
        norm_r: [C], or None.
        norm_m: [C], or None; None if and only if norm_r is.
        weight: [1, 2 C], the RWKV half first.
        bias: [1].
        eps: added to the mean squares.
        backend: a name in ``BACKENDS["token_gate"]``, or ``auto``.

    Returns:
        [..., C] in the dtype of x, and the gate a, the RWKV share, [..., 1] in fp32 (or fp64).

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("token_gate", x, r=r, m=m)
    _check_norms("token_gate", x.shape[-1:], norm_r, norm_m)
    check_shape("token_gate", "weight", weight, (1, 2 * x.shape[-1]))
    check_shape("token_gate", "bias", bias, (1,))
    run = choose("token_gate", BACKENDS["token_gate"], backend, x)
    with full_precision(x):
        return run(x, r, m, norm_r, norm_m, weight, bias, eps)


def channel_gate(
    x: Tensor, r: Tensor, m: Tensor, logits: Tensor, *, backend: str = "auto"
) -> Tensor:
    """One gate a token and channel: ``x + a r + (1 - a) m``, ``a = sigmoid(logits)``.

    Args:
        x: residual stream [..., C].
        r: RWKV-6 branch, normalised if it is to be, [..., C].
        m: Mamba-2 branch, likewise, [..., C].
        logits: of the RWKV share [..., C].
        backend: a name in ``BACKENDS["channel_gate"]``, or ``auto``.

    Returns:
        [..., C] in the dtype of x.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("channel_gate", x, r=r, m=m, logits=logits)
    run = choose("channel_gate", BACKENDS["channel_gate"], backend, x)
    return run(x, r, m, logits)


def branch_gains(
    x: Tensor,
    r: Tensor,
    m: Tensor,
    norm_r: Tensor | None,
    norm_m: Tensor | None,
    gain_r: Tensor,
    gain_m: Tensor,
    eps: float,
    *,
    backend: str = "auto",
) -> Tensor:
    """Gains a channel: ``x + gain_r r' + gain_m m'``, r' and m' as in `token_gate`.

    Args:
        x: residual stream [..., C].
        r: RWKV-6 branch [..., C].
        m: Mamba-2 branch [..., C].
        norm_r: [C], or None.
        norm_m: [C], or None; None if and only if norm_r is.
        gain_r: [C].
        gain_m: [C].
        eps: added to the mean squares.
        backend: a name in ``BACKENDS["branch_gains"]``, or ``auto``.

    Returns:
        [..., C] in the dtype of x.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    _check("branch_gains", x, r=r, m=m)
    _check_norms("branch_gains", x.shape[-1:], norm_r, norm_m)
    check_shape("branch_gains", "gain_r", gain_r, x.shape[-1:])
    check_shape("branch_gains", "gain_m", gain_m, x.shape[-1:])
    run = choose("branch_gains", BACKENDS["branch_gains"], backend, x)
    return run(x, r, m, norm_r, norm_m, gain_r, gain_m, eps)


def _check(op: str, x: Tensor, **others: Tensor) -> None:
    for name, tensor in others.items():
        check_shape(op, name, tensor, x.shape)


def _check_norms(
    op: str, shape: tuple[int, ...], norm_r: Tensor | None, norm_m: Tensor | None
) -> None:
    if norm_r is None or norm_m is None:
        if norm_r is not norm_m:
            raise UserError(f"{op}: give both norm_r and norm_m or neither")
        return
    check_shape(op, "norm_r", norm_r, shape)
    check_shape(op, "norm_m", norm_m, shape)
