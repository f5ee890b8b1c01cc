"""Probes find what is known to be there, and nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch

from groundthink.diagnose.probes.information import folds, information, leading, sketch


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(n: int, classes: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def told(x: torch.Tensor, y: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Information in bits [p]."""
    return information(x, y=y, groups=groups, classes=int(y.max()) + 1)[0].mean(1)


def gaussian_bits(distance: float) -> float:
    """Information of one normal variable about which of two means, `distance` sd apart, it has."""
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * (x - distance / 2) ** 2) / math.sqrt(2 * math.pi)
    posterior = torch.sigmoid(distance * x)
    return 1 + float(torch.trapezoid(density * posterior.log2(), x))


def test_the_probe_reaches_the_information_of_gaussians() -> None:
    n, y = 2000, labels(2000, 2)
    x = torch.stack([noise(n, 6) + torch.eye(6)[0] * d * y[:, None] for d in (0.0, 1.0, 2.0, 4.0)])
    bits = told(x, y, torch.arange(n) // 20)
    truth = torch.tensor([gaussian_bits(d) for d in (0.0, 1.0, 2.0, 4.0)])
    torch.testing.assert_close(bits, truth.float(), atol=0.03, rtol=0)


def test_labels_of_many_classes_that_are_written_in_x_are_read_whole() -> None:
    y = labels(800, 16)
    x = noise(16, 24)[y]
    bits = told(x[None] + 0.01 * noise(800, 24), y, torch.arange(800) // 10)
    assert float(bits) == pytest.approx(4, abs=0.15)


def test_a_group_is_scored_by_probes_that_never_saw_it() -> None:
    """Labels that belong to groups, and vectors that name the group, tell nothing held out."""
    group = torch.arange(400) // 20
    x, y = noise(20, 12)[group][None], labels(20, 2)[group]
    assert float(told(x, y, group)) < 0.05
    assert float(told(x, y, torch.arange(400))) > 0.3
    parts = folds(group)
    assert all(len(parts[group == g].unique()) == 1 for g in range(20))
    assert parts.bincount().tolist() == [80] * 5


def test_directions_are_found_without_labels_inside_groups() -> None:
    """A small difference within pairs is lost in the variance between them unless it is asked."""
    group, y = torch.arange(600) // 2, torch.arange(600) % 2
    x = (10 * noise(300, 50)[group] + torch.eye(50)[7] * 12 * y[:, None])[None]
    asked = told(leading(x, 1, group), y, group)
    plain = told(leading(x, 1), y, group)
    assert float(plain) < 0.05 < 0.2 < float(asked)


def test_more_to_read_is_no_handicap() -> None:
    """A second source of nothing but noise leaves the information of the first as it is."""
    y = labels(300, 4)
    x = noise(4, 3)[y][None] + noise(300, 3)
    both = torch.cat((x, noise(300, 40, seed=5)[None]), -1)
    groups = torch.arange(300) // 5
    first, _, all_of_it = information(x, noise(1, 300, 2), both, y=y, groups=groups, classes=4)
    alone = information(both, y=y, groups=groups, classes=4)
    assert float(alone.mean()) < float(first.mean()) - 0.05
    assert float(all_of_it.mean()) == pytest.approx(float(first.mean()), abs=0.05)


def test_a_sketch_keeps_lengths_and_is_linear() -> None:
    x, y = noise(8, 30, 100), noise(8, 30, 100, seed=2)
    torch.testing.assert_close(sketch(x - 2 * y), sketch(x) - 2 * sketch(y), atol=1e-3, rtol=1e-4)
    ratio = sketch(x).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert sketch(x).shape == (8, 256)
    assert ratio.sub(1).abs().max() < 0.2
    assert torch.equal(sketch(x[:, :5, :40]), x[:, :5, :40].flatten(1))
