"""Matrices in half precision, made once a pass: autocast would cast them one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ALIGNED = 64
"""Elements that a matrix begins at a multiple of."""


def castable(model: nn.Module) -> list[str]:
    """Names of the weights that autocast casts in a forward pass to the features.

    The head is not among them: the loss takes care of it.
    """
    head = getattr(model, "head", None)
    linear = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and module.out_features > 1
    }
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if name in linear or name.endswith("time_maa_w1")]


def halves(model: nn.Module, names: list[str], dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters of these names in another dtype; their gradients come back in theirs."""
    if not names:
        return {}
    weights = [model.get_parameter(name) for name in names]
    return dict(zip(names, _Cast.apply(dtype, *weights), strict=True))  # pyright: ignore


class _Cast(torch.autograd.Function):
    """All of them in one block of memory, by one launch forward and one backward."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *weights: Tensor):
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        sizes = [-(-weight.numel() // ALIGNED) * ALIGNED for weight in weights]
        memory = torch.empty(sum(sizes), dtype=dtype, device=weights[0].device).untyped_storage()
        cast, start = [], 0
        for weight, size in zip(weights, sizes, strict=True):
            part = weight.new_empty(0, dtype=dtype)
            cast.append(part.set_(memory, start, weight.shape, _strides(weight.shape)))
            start += size
        torch._foreach_copy_(cast, weights)  # pyright: ignore
        return tuple(cast)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None):
        pairs = [
            (grad, torch.empty_like(grad, dtype=dtype))
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
            if grad is not None
        ]
        if pairs:
            torch._foreach_copy_([full for _, full in pairs], [grad for grad, _ in pairs])  # pyright: ignore
        done = iter(pairs)
        return None, *(None if grad is None else next(done)[1] for grad in grads)


def _strides(shape: torch.Size) -> tuple[int, ...]:
    """Of contiguous memory."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
