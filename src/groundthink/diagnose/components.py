"""The branches of a model, and gradients by branch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from groundthink.models.components import BRANCHES, branch


def branches(model: nn.Module) -> list[str]:
    """The branches that any block of the model has."""
    present = {branch(name) for name, _ in model.named_parameters()}
    return [name for name in BRANCHES if name in present]


def parallel(model: nn.Module) -> bool:
    """Whether any block fuses two branches."""
    return any(name.split(".")[2:] == ["fusion"] for name, _ in model.named_modules())


def grad_rms(model: nn.Module) -> dict[str, float]:
    """Root mean square of the gradient over all parameters of each component; no gradient is 0."""
    grads: dict[str, list[torch.Tensor]] = {}
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = branch(name)
        sizes[part] = sizes.get(part, 0) + parameter.numel()
        if parameter.grad is not None:
            grads.setdefault(part, []).append(parameter.grad)
    norms = {part: nn.utils.get_total_norm(grads.get(part, [])) for part in sizes}
    return {part: float(norms[part]) / math.sqrt(sizes[part]) for part in sizes}


def ratio(rms: dict[str, float]) -> float | None:
    """R/M of a quantity by component; None without both branches, infinite if Mamba's is 0."""
    if not all(name in rms for name in BRANCHES):
        return None
    r, m = (rms[name] for name in BRANCHES)
    return r / m if m else (math.inf if r else math.nan)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model takes a gradient while the context is open."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_()
