"""G4 and the checks of the two branches: outputs, independence, gradients, balance at the start."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from groundthink.data.stream import Batch
from groundthink.diagnose.components import branches, grad_rms, ratio
from groundthink.diagnose.registry import gate
from groundthink.diagnose.subject import Subject
from groundthink.diagnose.tape import tape
from groundthink.models.fusion import Fusion
from groundthink.verdicts.statistics import bootstrap_mean, exact, median
from groundthink.verdicts.thresholds import MIN_BATCHES
from groundthink.verdicts.verdict import Finding, judge, skipped

ROWS, LENGTH = 16, 128


@gate("G4", "component balance", both=True, trained=True)
def component_balance(subject: Subject) -> list[Finding]:
    """Both branches get gradients of one size: RMS per parameter, R over M, median over batches."""
    ratios = []
    for batch in subject.batches[:MIN_BATCHES]:
        backward(subject, batch)
        ratios.append(ratio(grad_rms(subject.model)))
    subject.model.zero_grad()
    low, high = np.quantile(ratios, [0.25, 0.75], method="nearest")
    return [judge("G4", "gradient R/M", median(ratios), f"IQR {low:.3g}..{high:.3g}")]


def backward(subject: Subject, batch: Batch) -> None:
    """Gradients of the mean loss of one batch, alone, in the parameters."""
    subject.model.zero_grad()
    _, losses = subject.losses(subject.model, batch)
    losses.mean().backward()


@gate("gradient-flow", "gradient flow", trained=True)
def gradient_flow(subject: Subject) -> list[Finding]:
    """Every parameter of every component receives a gradient."""
    backward(subject, subject.batches[0])
    without = [name for name, p in subject.model.named_parameters() if not alive(p)]
    total = sum(1 for _ in subject.model.parameters())
    subject.model.zero_grad()
    more = f" and {len(without) - 3} more" if len(without) > 3 else ""
    note = ", ".join(without[:3]) + more
    return [judge("gradient-flow", "parameters without gradient", exact(len(without), total), note)]


def alive(parameter: nn.Parameter) -> bool:
    """Whether a gradient is there, finite, and not zero everywhere."""
    grad = parameter.grad
    return grad is not None and bool(grad.isfinite().all()) and bool(grad.any())


@gate("outputs", "component outputs", trained=True)
def component_outputs(subject: Subject) -> list[Finding]:
    """The output of every branch in every layer is finite and of a sensible size."""
    outputs = branch_outputs(subject)
    if not outputs:
        return [skipped("outputs", "component outputs", "no recurrent branch")]
    bad = sum(int((~y.isfinite()).sum()) for y in outputs.values())
    findings = [judge("outputs", "non-finite outputs", exact(bad, len(outputs)))]
    for name, y in outputs.items():
        spread = bootstrap_mean(y.flatten(1).std(1).cpu().numpy())
        findings.append(judge("outputs", "output std", spread, where=name))
    return findings


@gate("independence", "component independence", both=True, trained=True)
def independence(subject: Subject) -> list[Finding]:
    """The branches of a block point in different directions: mean cosine of their outputs."""
    outputs = branch_outputs(subject)
    findings = []
    for name, r in outputs.items():
        block, _, branch = name.rpartition(".")
        m = outputs.get(f"{block}.mamba2")
        if branch == "rwkv6" and m is not None:
            cosine = torch.cosine_similarity(r, m, dim=-1).mean(1)
            interval = bootstrap_mean(cosine.cpu().numpy())
            findings.append(judge("independence", "branch cosine", interval, where=block))
    return findings


@torch.no_grad()
def branch_outputs(subject: Subject) -> dict[str, Tensor]:
    """Raw output of every branch on real text, fp32 [rows, T, C] by module name."""
    names = [f"blocks.*.{branch}" for branch in branches(subject.model)]
    with tape(subject.model, *names) as calls:
        subject.model(subject.rows(ROWS, LENGTH))
    return {name: call.output[0].float() for name, (call,) in calls.items()}


@gate("pre-balance", "balance before training", both=True)
@torch.no_grad()
def pre_balance(subject: Subject) -> list[Finding]:
    """At step 0 neither branch is far ahead: effective RWKV share of a fresh model, by layer."""
    fresh = subject.untrained()
    with tape(fresh, "blocks.*.fusion") as calls:
        fresh(subject.rows(ROWS, LENGTH))
    findings = []
    for name, (call,) in calls.items():
        fusion = fresh.get_submodule(name)
        assert isinstance(fusion, Fusion)
        r, m = (part.float().flatten(1).norm(dim=1) for part in fusion.parts(*call.inputs))
        interval = bootstrap_mean((r / (r + m)).cpu().numpy())
        where = name.removesuffix(".fusion")
        findings.append(judge("pre-balance", "RWKV share at init", interval, where=where))
    return findings
