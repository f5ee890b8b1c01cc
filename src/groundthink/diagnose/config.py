"""Configs of `groundthink check`, `probe` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """Run the gates on a trained model."""

    run: str = ""
    """Run folder."""
    suite: str = "gates"
    """gates, states, diagnostics, or graduation, which is made of the first two."""
    only: tuple[str, ...] = ()
    """Ids of the gates to run (groundthink list gates), of whatever suite; all of it if empty."""
    data: str = ""
    """Corpus to read instead of the held-out text of the run: a file, folder, glob or name."""
    samples: int = 64
    """Stretches of text that a diagnostic reads; ablations read twice as many."""
    lengths: tuple[int, ...] = ()
    """Tokens of context after which D4a takes the loss, such as [64,128,256,512]; doubles up to
    sixteen training lengths if empty."""
    allow_untrained: bool = False
    """Also run gates that mean nothing on an untrained model; every note then says so."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """Look inside a trained model."""

    run: str = ""
    """Run folder."""
    probes: tuple[str, ...] = ()
    """balance, states, memory, context, flow, drift; all if empty."""
    data: str = ""
    """Corpus to read instead of the held-out text of the run: a file, folder, glob or name."""
    samples: int = 48
    """Stretches of text, or pairs, that a probe reads."""
    lengths: tuple[int, ...] = ()
    """Tokens after a fact at which the probe memory asks for it, beside 0, 1, 2 and 16, such as
    [64,512]; doubles up to 256 if empty."""
    allow_untrained: bool = False
    """Also look at an untrained model; every note then says so."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put two runs side by side."""

    a: str = ""
    """Run folder, or a checkpoint in one."""
    b: tuple[str, ...] = ()
    """The other."""
    data: str = ""
    """Corpus to read instead of the held-out text of A: a file, folder, glob or name."""
    samples: int = 64
    """Stretches of text that both read."""
    assert_equal: bool = False
    """Only say in what training records or weights they differ to the last bit; exit code 1 if they
    do. For changes that must not change anything."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
