"""G1, G2 and the checkpoint round trip: the model as a function, before any training matters."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from groundthink.diagnose.registry import gate, worst
from groundthink.diagnose.subject import Subject
from groundthink.layers.state import State
from groundthink.models import pretrained
from groundthink.ops.testing import relative_rms
from groundthink.verdicts.statistics import bootstrap_mean, exact
from groundthink.verdicts.thresholds import MIN_POSITIONS
from groundthink.verdicts.verdict import Finding, judge

LENGTHS = (1, 7, 64, 255, 257, 2048)
"""Around chunk and power-of-two edges, one token, and long."""
PIECES = (1, 7, 64, 185)
PERTURBED = (1, 63, 64, 129, 192)
TRAINING_COPIES = 4
"""Weights, gradients and the two moments of AdamW."""


@gate("G1", "forward pass")
@torch.no_grad()
def forward(subject: Subject) -> list[Finding]:
    """Right shapes, finite logits, memory, causality, pieces equal to the whole, state to disk."""
    return [
        *lengths(subject),
        memory(subject),
        causality(subject),
        pieces(subject),
        round_trip(subject),
    ]


def lengths(subject: Subject) -> list[Finding]:
    """Shape and finiteness at every length the model can take."""
    config, wrong, bad = subject.config, [], 0
    fitting = [t for t in LENGTHS if subject.model.recurrent or t <= config.context_length]
    for t in fitting:
        logits, _ = subject.model(subject.line(t))
        if logits.shape != (1, t, config.vocab_size):
            wrong.append(f"T={t}: {list(logits.shape)}")
        bad += int((~logits.isfinite()).sum())
    tried = "T " + " ".join(map(str, fitting))
    return [
        judge("G1", "wrong shapes", exact(len(wrong), len(fitting)), "; ".join(wrong) or tried),
        judge("G1", "non-finite logits", exact(bad, len(fitting)), tried),
    ]


def memory(subject: Subject) -> Finding:
    """Bytes of a training step (weights, gradients, AdamW, activations) over the device's."""
    batch = subject.batches[0]
    per_token = activation_bytes(subject, batch.tokens.to(subject.device)) / batch.tokens.numel()
    weights = sum(p.numel() * p.element_size() for p in subject.model.parameters())
    need = TRAINING_COPIES * weights + per_token * max(subject.train_tokens, batch.tokens.numel())
    total = device_bytes(subject.device)
    note = f"about {need / 2**20:,.0f} MiB of {total / 2**20:,.0f} MiB in training"
    return judge("G1", "memory share", exact(need / total), note)


@torch.enable_grad()
def activation_bytes(subject: Subject, tokens: Tensor) -> int:
    """Bytes that one forward pass keeps for the backward pass, the weights not counted."""
    known = {p.untyped_storage().data_ptr() for p in subject.model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logits, _ = subject.model(tokens)
    return sum(kept.values()) + logits.untyped_storage().nbytes()


def device_bytes(device: torch.device) -> int:
    """Memory of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def causality(subject: Subject) -> Finding:
    """Change one token: no earlier logit may move. Largest move over the RMS of the logits."""
    tokens = subject.line(PERTURBED[-1] + 1)
    logits, _ = subject.model(tokens)
    scale, moved = logits.square().mean().sqrt(), {}
    for t in PERTURBED:
        other = tokens.clone()
        other[:, t] = (other[:, t] + 1) % subject.config.vocab_size
        early = subject.model(other)[0][:, :t] - logits[:, :t]
        moved[f"token {t}"] = float(early.abs().max() / scale)
    changed, leak = worst(moved)
    note = f"most when {changed} changes" if leak else "bit-identical"
    return judge("G1", "future leak", exact(leak, len(PERTURBED)), note)


def pieces(subject: Subject) -> Finding:
    """Relative RMS between one pass and passes over pieces that hand the state on."""
    tokens = subject.line(sum(PIECES))
    whole, end = subject.model(tokens)
    parts, state = [], None
    for piece in tokens.split(PIECES, dim=1):
        logits, state = subject.model(piece, state)
        parts.append(logits)
    errors = {"logits": relative_rms(torch.cat(parts, dim=1), whole)}
    assert isinstance(state, State)
    for (name, found), (_, expected) in zip(state.items(), end.items(), strict=True):
        errors[name] = relative_rms(found, expected)
    part, error = worst(errors)
    note = f"T {sum(PIECES)} in pieces of {' '.join(map(str, PIECES))}; worst in {part}"
    return judge("G1", "pieces against whole", exact(error), note)


def round_trip(subject: Subject) -> Finding:
    """Save the state, load it, go on: the largest difference of any logit."""
    first, second = subject.line(128).split(64, dim=1)
    _, state = subject.model(first)
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder) / "state.safetensors")
        loaded = State.load(Path(folder) / "state.safetensors")
    loaded = loaded.map(lambda x: x.to(subject.device))
    return judge("G1", "state round trip", exact(largest(subject.model, second, loaded, state)))


def largest(model: nn.Module, tokens: Tensor, a: State, b: State) -> float:
    """Largest difference of any logit between two starting states."""
    return float((model(tokens, a)[0] - model(tokens, b)[0]).abs().max())


@gate("G2", "initial entropy")
@torch.no_grad()
def initial_entropy(subject: Subject) -> list[Finding]:
    """A fresh model of the same config and seed is undecided on real text."""
    config = subject.config
    fresh = subject.untrained()
    uniform = math.log(config.vocab_size)
    entropies, gaps, positions = [], [], 0
    for batch in subject.batches:
        logits, losses = subject.losses(fresh, batch)
        p = logits.float().softmax(-1)
        entropies += (torch.special.entr(p).sum(-1).mean(1) / uniform).tolist()
        scored = (batch.targets >= 0).sum(1).to(subject.device)
        gaps += (losses.sum(1) / scored - uniform).tolist()
        positions += batch.tokens.numel()
        if positions >= MIN_POSITIONS and len(gaps) >= 16:
            break
    note = f"{positions} positions, ln V = {uniform:.3f}"
    return [
        judge("G2", "init entropy / ln V", bootstrap_mean(entropies), note),
        judge("G2", "init loss - ln V", bootstrap_mean(gaps), note),
    ]


@gate("checkpoint", "checkpoint round trip")
@torch.no_grad()
def checkpoint(subject: Subject) -> list[Finding]:
    """A model folder written and read again gives the same logits to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(folder, subject.model, None, {})
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        backends = [m.backend for m in subject.model.modules() if hasattr(m, "backend")]
        again, _ = pretrained.load(folder, device=subject.device, backend=[*backends, "auto"][0])
    tokens = subject.rows(4, 64)
    difference = float((again(tokens)[0] - subject.model(tokens)[0]).abs().max())
    return [judge("checkpoint", "logit difference", exact(difference), f"{size / 2**20:.1f} MiB")]
