"""S0 to S4: whether the state is there, bounded, moved by the text, repeatable, and used."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from groundthink.diagnose.components import BRANCHES, branches
from groundthink.diagnose.losses import text_losses
from groundthink.diagnose.measures import distance, rms
from groundthink.diagnose.probes.ablation import Cut, Replace, ablated, zero
from groundthink.diagnose.probes.influence import influence
from groundthink.diagnose.registry import gate, worst
from groundthink.diagnose.states import matrices
from groundthink.diagnose.subject import Subject
from groundthink.layers.state import State
from groundthink.models.config import ModelConfig
from groundthink.verdicts.statistics import Paired, bootstrap_mean, exact
from groundthink.verdicts.verdict import Finding, judge, skipped

ROWS, LENGTH = 32, 256
"""Rows of text whose last states are compared."""
LENGTHS = (1, 7, 64)
TOKENS = 128
"""Length of the texts that an ablation is measured on."""
EDIT, LAGS = 32, (16, 64, 192)
"""Position of the token that S4b replaces, and how much later the state is compared."""
JUDGED = 64
"""The lag that S4b judges."""
NAMES = {"rwkv6": "RWKV-6", "mamba2": "Mamba-2"}


def expected(c: ModelConfig, module: str, tokens: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the state of one module after `tokens` tokens, without the batch, by the config."""
    inner, size = c.mamba_expand * c.d_model, c.d_model // c.attention_heads
    keys = (c.attention_heads, tokens, size)
    channels = inner + 2 * c.mamba_groups * c.mamba_state_size
    heads = (inner // c.mamba_head_size, c.mamba_head_size, c.mamba_state_size)
    square = (c.d_model // c.rwkv_head_size, c.rwkv_head_size, c.rwkv_head_size)
    return {
        "rwkv6": {"wkv": square, "shift": (c.d_model,)},
        "mamba2": {"ssm": heads, "conv": (channels, c.mamba_conv - 1)},
        "attention": {"k": keys, "v": keys, "start": ()},
        "ffn": {"shift": (c.d_model,)},
    }[module]


@gate("S0", "state shapes", suite="states")
@torch.no_grad()
def shapes(subject: Subject) -> list[Finding]:
    """Every mixer of every layer has its whole state, in the shapes that the config gives."""
    wrong, count = [], 0
    for tokens in LENGTHS:
        _, state = subject.model(subject.line(tokens))
        for i, layer in enumerate(state.layers):
            present = [name for name in ("rwkv6", "mamba2", "attention") if _has(subject, i, name)]
            if subject.config.ffn == "rwkv" and subject.model.recurrent:
                present.append("ffn")
            want = {name: expected(subject.config, name, tokens) for name in present}
            have = {n: {p: tuple(x.shape[1:]) for p, x in q.items()} for n, q in layer.items()}
            count += sum(map(len, want.values()))
            if have != want:
                wrong.append(f"blocks.{i} after {tokens} tokens: {have}")
    return [judge("S0", "wrong states", exact(len(wrong), count), "; ".join(wrong[:2]))]


def _has(subject: Subject, layer: int, name: str) -> bool:
    return hasattr(subject.model.blocks[layer], name)


@gate("S1", "state size", suite="states", trained=True)
@torch.no_grad()
def sizes(subject: Subject) -> list[Finding]:
    """Every part of the state is finite, and matrix states are neither empty nor huge."""
    _, state = subject.model(subject.rows(ROWS, LENGTH))
    bad = {name: int((~x.isfinite()).sum()) for name, x in state.items()}
    where, most = worst({name: float(n) for name, n in bad.items()})
    note = f"most in {where}" if most else ""
    findings = [judge("S1", "non-finite state entries", exact(sum(bad.values()), len(bad)), note)]
    if most:
        return findings
    return findings + [
        judge("S1", "state RMS", bootstrap_mean(rms(x).cpu().numpy()), where=name)
        for name, x in matrices(state).items()
    ]


@gate("S2", "state variation", suite="states", trained=True)
@torch.no_grad()
def variation(subject: Subject) -> list[Finding]:
    """Different texts leave different states: relative distance of pairs, by layer and branch."""
    texts = subject.rows(ROWS, LENGTH)
    texts = texts[: len(texts) // 2 * 2]
    _, state = subject.model(texts)
    found = {name: distance(x[::2], x[1::2]) for name, x in matrices(state).items()}
    if not found:
        return [skipped("S2", "distance between texts", "no recurrent branch")]
    return [
        judge("S2", "distance between texts", bootstrap_mean(x.cpu().numpy()), where=name)
        for name, x in found.items()
    ]


@gate("S3", "determinism", suite="states")
@torch.no_grad()
def determinism(subject: Subject) -> list[Finding]:
    """The same text leaves the same state: largest difference of two passes over the RMS."""
    texts = subject.rows(8, LENGTH)
    first, second = (dict(subject.model(texts)[1].items()) for _ in range(2))
    moved = {
        name: float((second[name] - x).abs().max() / rms(x[None].float()).clamp(min=1e-30))
        for name, x in first.items()
    }
    where, most = worst(moved)
    note = f"most in {where}" if most else "equal to the last bit"
    return [judge("S3", "difference of two passes", exact(most, len(moved)), note)]


@gate("S3b", "gradient through the state", suite="states", trained=True)
def state_gradient(subject: Subject) -> list[Finding]:
    """The loss after a token depends on every part of the state at that token."""
    first, second = subject.rows(8, 128).split(64, dim=1)
    with torch.no_grad():
        _, state = subject.model(first)
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in state.items()}
    loss = text_losses(subject.model, second, State.from_items(leaves)).mean()
    asked = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(loss, list(asked.values()), allow_unused=True)
    without = [name for name, grad in zip(asked, grads, strict=True) if not alive(grad)]
    note = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
    return [judge("S3b", "parts without gradient", exact(len(without), len(asked)), note)]


def alive(grad: Tensor | None) -> bool:
    """Whether a gradient is there, finite, and not zero everywhere."""
    return grad is not None and bool(grad.isfinite().all()) and bool(grad.any())


@gate("S4", "contribution of the states", suite="states", both=True, trained=True)
@torch.no_grad()
def contribution(subject: Subject) -> list[Finding]:
    """What it costs to read no past from the state of one branch, in all layers."""
    return ablation(subject, "S4", {"": ("read", zero)})


def ablation(subject: Subject, id: str, modes: dict[str, tuple[str, Replace]]) -> list[Finding]:
    """Loss without each branch, and the share of RWKV-6 in both, for each mode (site, what stands
    in for the part)."""
    texts, clusters = subject.stretches(2 * subject.samples, TOKENS)
    whole = cut_losses(subject, texts)
    findings = []
    for mode, (site, replace) in modes.items():
        costs = {
            name: cut_losses(subject, texts, Cut(name, site, replace)) - whole for name in BRANCHES
        }
        paired = Paired(costs, clusters)
        for name in BRANCHES:
            cost = paired.interval(lambda means, name=name: means[name])
            findings.append(judge(id, f"loss without {NAMES[name]}", cost, where=mode))
        findings.append(judge(id, "RWKV share of the loss", paired.interval(share), where=mode))
    return findings


def share(costs) -> np.ndarray:
    """RWKV-6's share of what it costs to lose either branch; a gain costs nothing."""
    r, m = (np.maximum(costs[name], 0) for name in BRANCHES)
    with np.errstate(invalid="ignore"):
        return np.divide(r, r + m)


def cut_losses(subject: Subject, texts: Tensor, *cuts: Cut) -> np.ndarray:
    """Loss of each text with the cuts, nats per token [N]."""
    with ablated(subject.model, *cuts):
        parts = [text_losses(subject.model, part) for part in texts.split(16)]
    return torch.cat(parts).double().cpu().numpy()


@gate("S4b", "persistence", suite="states", trained=True)
@torch.no_grad()
def persistence(subject: Subject) -> list[Finding]:
    """A token that is replaced still moves the state later on, mean over layers of each branch."""
    texts = subject.rows(ROWS, EDIT + max(LAGS) + 1)
    _, moved = influence(subject.model, texts, EDIT, LAGS)
    if not moved:
        return [skipped("S4b", "state moved by a token", "no recurrent branch")]
    findings = []
    for branch in branches(subject.model):
        layers = torch.stack([x for name, x in moved.items() if name.endswith(branch)]).mean(0)
        values = dict(zip(LAGS, layers.T, strict=True))
        note = ", ".join(f"{x.mean():.2g} after {lag}" for lag, x in values.items())
        interval = bootstrap_mean(values[JUDGED].numpy())
        findings.append(judge("S4b", "state moved by a token", interval, note, branch))
    return findings
