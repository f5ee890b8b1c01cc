"""Negative log-likelihood of a softmax, with its gradient in the memory of the logits."""

from __future__ import annotations

from torch import Tensor

from groundthink.ops.dispatch import check_shape
from groundthink.ops.fused import choose
from groundthink.ops.nll import reference


def _triton(*args):
    from groundthink.ops.nll import launch

    return launch.nll_(*args)


BACKENDS = {"reference": reference.nll_, "triton": _triton}


def nll_(logits: Tensor, targets: Tensor, *, backend: str = "auto") -> Tensor:
    """``-log softmax(logits)[target]`` of every row; the logits turn into its gradient.

    For training without autograd: logits of a large vocabulary are the largest tensor there, and
    are neither copied nor read more often than needed.

    Args:
        logits: [N, V] of a floating type, rows contiguous; becomes softmax(logits) - onehot, or
            zeros where the target is negative.
        targets: int64 [N]; a negative one is not scored.
        backend: a name in ``BACKENDS``, or ``auto``.

    Returns:
        [N] in nats, fp32 (or fp64); 0 where the target is negative.

    Raises:
        UserError: a shape does not fit, or the backend is unknown or cannot run here.
    """
    check_shape("nll_", "targets", targets, (logits.shape[0],))
    return choose("nll_", BACKENDS, backend, logits)(logits, targets)
