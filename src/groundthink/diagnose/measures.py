"""Measures of recurrent states. Letters: B texts, H heads; the last two dimensions are a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BUCKETS = 256
"""Size of a sketch."""


def rms(state: Tensor) -> Tensor:
    """Root mean square of the entries of each text [B]."""
    return state.flatten(1).square().mean(1).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the states of each head, mean over heads [B]; a NaN where a state is zero."""
    a, b = a.flatten(2), b.flatten(2)
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean(-1)


def relative(change: Tensor, state: Tensor) -> Tensor:
    """Norm of a change over the norm of the state that it is part of [B]."""
    return change.flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| over the mean of both norms [B]; 0 if both are zero."""
    scale = (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2
    return ((a - b).flatten(1).norm(dim=1) / scale).nan_to_num(0)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|^2 / (|a|^2 + |b|^2) [B]: the share of the energy of two states that lies in their
    difference; 0 if they are equal, about 1 if they have nothing in common."""
    energy = a.flatten(1).square().sum(1) + b.flatten(1).square().sum(1)
    return ((a - b).flatten(1).square().sum(1) / energy).nan_to_num(0)


def singular(state: Tensor) -> Tensor:
    """Singular values of each head [B, H, rank], found on the CPU: a GPU takes matrices of this
    size one after the other."""
    return torch.linalg.svdvals(state.cpu())


def effective_rank(singular: Tensor, most: int | None = None) -> Tensor:
    """exp of the entropy of the normalised singular values over the rank there can be, mean over
    heads [B] (Roy and Vetterli 2007).

    Args:
        singular: singular values [B, H, rank].
        most: tokens that the state has seen, if that is less than the full rank.
    """
    p = singular / singular.sum(-1, keepdim=True)
    full = min(most or singular.shape[-1], singular.shape[-1])
    return (torch.special.entr(p).sum(-1).exp() / full).mean(-1)


def spectral_entropy(singular: Tensor) -> Tensor:
    """Entropy of the energies s^2 / sum s^2 over that of equal ones, mean over heads [B]."""
    energy = singular.square()
    p = energy / energy.sum(-1, keepdim=True)
    return (torch.special.entr(p).sum(-1) / math.log(p.shape[-1])).mean(-1)


def sketch(state: Tensor) -> Tensor:
    """The state in few numbers that keep inner products to about 1 / sqrt(BUCKETS) [B, BUCKETS]:
    every entry is added to one bucket with a random sign (Charikar, Chen and Farach-Colton 2002).
    """
    flat = state.flatten(1)
    generator = torch.Generator().manual_seed(flat.shape[1])
    bucket = torch.randint(BUCKETS, flat.shape[1:], generator=generator).to(flat.device)
    sign = torch.randint(2, flat.shape[1:], generator=generator).to(flat) * 2 - 1
    return flat.new_zeros(len(flat), BUCKETS).index_add_(1, bucket, flat * sign)
