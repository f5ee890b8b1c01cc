"""Detectors of change on series and samples whose truth is known, and the probe on a toy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnose.subjects import subject

from groundthink.diagnose.probes.change import debiased_cka, detector, energy_test
from groundthink.diagnose.probes.drift import drift, series
from groundthink.verdicts.verdict import Verdict

STEPS = 600


def course(seed: int, shift: float = 0.0) -> np.ndarray:
    """A loss that falls as a power of the step, with correlated noise and a jump at step 400."""
    noise = np.random.default_rng(seed).normal(size=STEPS)
    for i in range(1, STEPS):
        noise[i] = 0.5 * noise[i - 1] + 0.8 * noise[i]
    values = 2 + 4 * (np.arange(STEPS) + 20.0) ** -0.4 + 0.05 * noise
    values[400:] += shift
    return values


def test_a_jump_is_seen_soon_and_a_falling_loss_is_no_change():
    quiet = [detector(course(seed), draws=100, seed=seed) for seed in range(12)]
    jumps = [detector(course(seed, 0.15), draws=100, seed=seed) for seed in range(12)]
    # At a rate of 5 % more than three false alarms in twelve have a chance of 0.2 %.
    assert sum(found.alarm is not None for found in quiet) <= 3
    assert all(found.alarm is not None and 400 <= found.alarm < 430 for found in jumps)
    rate = np.mean([found.false_alarms / found.stationary for found in quiet])
    assert rate == pytest.approx(0.05, abs=0.03)
    assert all(found.seen < 0.15 and found.delay < 100 for found in quiet)


def test_a_fall_counts_only_where_it_is_asked_for():
    fallen = course(0, -0.15)
    assert detector(fallen, draws=100).alarm is None
    assert detector(fallen, draws=100, both=True).alarm is not None


def test_two_samples_differ_as_often_as_chance_allows_and_always_when_shifted():
    generator = torch.Generator().manual_seed(0)
    p, shifted = [], []
    for _ in range(40):
        x, y = torch.randn(2, 32, 8, generator=generator)
        p.append((energy_test(x, y, 199)[1] + 1) / 200)
        shifted.append((energy_test(x, y + 0.8, 199)[1] + 1) / 200)
    assert sum(value <= 0.05 for value in p) <= 6  # 99 % of a binomial with p = 0.05
    assert 0.3 < np.mean(p) < 0.7
    assert max(shifted) <= 0.05


def test_debiased_cka_is_zero_for_independent_data_and_one_up_to_rotation_and_scale():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(30, 2, 64, 512, generator=generator)
    x = pairs[0, 0]
    rotation = torch.linalg.qr(torch.randn(512, 512, generator=generator))[0]
    assert np.mean([debiased_cka(*pair) for pair in pairs]) == pytest.approx(0, abs=0.01)
    assert debiased_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-5)


def documents(count: int, length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(50, (length,), generator=generator) for _ in range(count)]


def test_the_probe_names_the_series_that_jumped():
    losses = [course(0, 0.3), course(1)]
    records = [
        {"kind": "train", "step": i, "loss": loss, "grad_norm": norm}
        for i, (loss, norm) in enumerate(zip(*losses, strict=True))
    ]
    model = subject(records=records, documents=documents(12, 80), train_length=16, samples=12)
    rows = drift(model)
    findings = {row["name"]: row["verdict"] for kind, row in rows if kind == "finding"}
    assert findings["p of no change in training, training loss"] == Verdict.WARN
    assert findings["p of no change in training, gradient norm"] == Verdict.PASS
    assert findings["p of no change in training, mean gate"] == Verdict.INCONCLUSIVE
    turned = {row["where"] for kind, row in rows if kind == "turn"}
    assert {"blocks.0.rwkv6", "blocks.0.mamba2"} <= turned


def test_a_series_takes_the_mean_over_layers_and_leaves_gaps_out():
    records = [
        {"kind": "balance", "step": 1, "gate": [0.25, None, 0.75]},
        {"kind": "balance", "step": 2, "gate": None},
        {"kind": "train", "step": 3, "gate": [9.0]},
        {"kind": "balance", "step": 4, "gate": [1.0]},
    ]
    steps, values = series(subject(records=records), "balance", "gate")
    assert steps == [1, 4] and values.tolist() == [0.5, 1.0]
