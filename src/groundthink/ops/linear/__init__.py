"""Linear maps of many tokens by small matrices, whose gradients are sums over the tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from groundthink.ops.dispatch import check_shape
from groundthink.ops.fused import choose


def _kernels():
    from groundthink.ops.linear import launch

    return launch


BACKENDS = {"reference": F.linear, "triton": lambda *args: _kernels().linear(*args)}


def linear(x: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    """``x weight^T``.

    Args:
        x: [..., C].
        weight: [D, C].
        backend: a name in ``BACKENDS``, or ``auto``.

    Returns:
        [..., D] in the dtype of x.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    check_shape("linear", "weight", weight, (weight.shape[0], x.shape[-1]))
    return choose("linear", BACKENDS, backend, x)(x, weight)
