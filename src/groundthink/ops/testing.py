"""What tests and benchmarks of the ops share: error measure, decay regimes, hostile memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

REGIMES = ("initial", "trained", "strong", "mixed")


def relative_rms(value: Tensor, oracle: Tensor) -> float:
    """RMS of the difference over RMS of the oracle, in fp64."""
    oracle = oracle.double()
    error = (value.double() - oracle).square().mean().sqrt()
    return (error / oracle.square().mean().sqrt().clamp_min(1e-30)).item()


def log_decays(regime: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """fp64 log decays <= 0 of a regime; the last dimension holds the channels.

    initial: -exp of the published spread -6..-1. trained: a wide log-normal around -0.05.
    strong: -1 to -20 everywhere. mixed: initial decays, one token in eight at -50.
    """
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    spread = -torch.exp(torch.linspace(-6, -1, shape[-1], dtype=torch.float64) + 0.1 * noise)
    if regime == "initial":
        return spread
    if regime == "trained":
        return -torch.exp(-3 + 1.5 * noise)
    if regime == "strong":
        return -1 - 19 * torch.rand(shape, generator=generator, dtype=torch.float64)
    assert regime == "mixed", regime
    wipe = torch.rand(shape[:-1], generator=generator, dtype=torch.float64) < 1 / 8
    return torch.where(wipe[..., None], -50.0, spread)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty and its kin return with NaN, so that a read before a write shows."""
    names = ("empty", "empty_like", "empty_strided")

    def poison(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(torch, name, poison(getattr(torch, name))))
        new_empty = Tensor.new_empty
        stack.enter_context(mock.patch.object(Tensor, "new_empty", poison(new_empty)))
        yield
