"""G0: every backend of every recurrence computes what the reference says."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from groundthink.diagnose.components import branches
from groundthink.diagnose.registry import gate, worst
from groundthink.diagnose.subject import Subject
from groundthink.errors import UserError
from groundthink.ops import ssd, wkv6
from groundthink.ops.dispatch import able
from groundthink.ops.ssd import BACKENDS as SSD_BACKENDS
from groundthink.ops.testing import log_decays, relative_rms
from groundthink.ops.wkv6 import BACKENDS as WKV6_BACKENDS
from groundthink.verdicts.statistics import exact
from groundthink.verdicts.verdict import Finding, judge, skipped

BATCH, LENGTH, HEADS = 2, 129, 2
BACKENDS = {"rwkv6": WKV6_BACKENDS, "mamba2": SSD_BACKENDS}
PRECISIONS = {"fp32 error": torch.float32, "bf16 error": torch.bfloat16}

Op = Callable[..., tuple[Tensor, Tensor]]


@gate("G0", "kernels")
def kernels(subject: Subject) -> list[Finding]:
    """Every backend of the recurrences agrees with the fp64 reference, forward and backward."""
    present = branches(subject.model)
    if not present:
        return [skipped("G0", "kernels", "no recurrent branch")]
    return [
        agreement(subject, branch, backend, quantity)
        for branch in present
        for backend in tried(subject, branch)
        for quantity in PRECISIONS
    ]


def asked(subject: Subject, branch: str) -> set[str]:
    """Backends that the mixers of a branch ask for."""
    mixers = (getattr(block, branch, None) for block in subject.model.blocks)
    return {mixer.backend for mixer in mixers if mixer is not None}


def tried(subject: Subject, branch: str) -> list[str]:
    """The backends that can run on the device of the model, and those it asks for."""
    device = next(subject.model.parameters()).device
    names = dict.fromkeys((*able(BACKENDS[branch], device), *asked(subject, branch)))
    return [name for name in names if name != "auto"]


def agreement(subject: Subject, branch: str, backend: str, quantity: str) -> Finding:
    """Largest relative RMS error over y, the final state and every gradient."""
    op, inputs = problem(subject, branch)
    name = "wkv6" if branch == "rwkv6" else "ssd"
    inputs = [x.to(PRECISIONS[quantity]) for x in inputs]
    try:
        found = dict(results(op, inputs, backend))
    except UserError as error:
        if backend in asked(subject, branch):
            return judge("G0", quantity, exact(math.nan), str(error), f"{name} {backend}")
        return skipped("G0", f"{quantity}, {name} {backend}", str(error))
    oracle = dict(results(op, [x.double() for x in inputs], "reference"))
    part, error = worst({part: relative_rms(found[part], oracle[part]) for part in oracle})
    return judge("G0", quantity, exact(error), f"worst in {part}", f"{name} {backend}")


def problem(subject: Subject, branch: str) -> tuple[Op, list[Tensor]]:
    """An op and fp64 inputs in the head sizes of the model, with a state and a document break."""
    config = subject.config
    generator = torch.Generator().manual_seed(0)
    reset = torch.zeros(BATCH, LENGTH, dtype=torch.bool, device=subject.device)
    reset[1, LENGTH // 3] = True

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(subject.device)

    tokens = (BATCH, LENGTH, HEADS)
    if branch == "rwkv6":
        size = config.rwkv_head_size
        log_w = log_decays("trained", (*tokens, size), generator).to(subject.device)
        inputs = [*(normal(*tokens, size) for _ in "rkv"), log_w, normal(HEADS, size)]
        state = normal(BATCH, HEADS, size, size)
        return functools.partial(wkv6, reset=reset), [*inputs, state]
    width, size = config.mamba_head_size, config.mamba_state_size
    dt, decay = 0.1 * normal(*tokens).abs(), -1 - normal(HEADS).abs()
    inputs = [normal(*tokens, width), dt, decay, normal(BATCH, LENGTH, 1, size)]
    inputs += [normal(BATCH, LENGTH, 1, size), normal(HEADS), normal(BATCH, HEADS, width, size)]
    return functools.partial(ssd, reset=reset), inputs


def results(op: Op, inputs: list[Tensor], backend: str) -> Iterator[tuple[str, Tensor]]:
    """Outputs and the gradients of a fixed functional of both, by name."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, state = op(*leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64, device=y.device)
    for x in (y, state):
        weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        total = total + (x.double() * weight.to(x.device)).sum()
    grads = torch.autograd.grad(total, leaves)
    yield from {"y": y.detach(), "state": state.detach()}.items()
    for i, grad in enumerate(grads):
        yield f"gradient of input {i}", grad
