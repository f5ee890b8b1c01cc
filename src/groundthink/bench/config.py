"""Configs of `groundthink bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from groundthink.data.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class BenchModel:
    """Measure speed (B1), memory (B2) and stability (B3) of a model."""

    model: str = "gf-mh-5m"
    """Model name, preset or YAML file."""
    vocab_size: int = 97
    """Number of token ids in B1 and B2; B3 takes that of its text."""
    batch_size: int = 8
    """Sequences per step."""
    seq_len: int = 256
    """Tokens per sequence; B1 and B2 also run at batch 8, length 64, the shape of the study."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision; weights and state stay fp32."""
    compile: bool = False
    """Compile each block with torch.compile."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    repeats: int = 20
    """Timed rounds of a race; each contestant runs once a round."""
    seconds: float = 60.0
    """A race starts no round after this time, once it has run six."""
    steps: int = 100
    """Training steps of B3."""
    against: tuple[str, ...] = ()
    """Contestants: reference (this model with the reference loops, in B1 only), gpt2 (that of
    transformers, 192 wide, 8 layers), or any model name."""
    matrix: bool = False
    """Run instead the study's one-change-at-a-time matrix: batch 16, 32, 64, bf16, compile, each
    against the baseline at batch 8, length 64; a change counts only if B3 passes with it."""
    seed: int = 0
    """Seed of the weights and of the data order."""
    data: DataConfig = field(default_factory=DataConfig)
    """The real text of B3."""
    out: str = "runs/bench.jsonl"
    """JSONL file that the records are appended to; empty writes none."""


@dataclass(frozen=True, kw_only=True)
class BenchOps:
    """Measure the backends of the recurrences against their reference loops."""

    only: tuple[str, ...] = ()
    """Names of the cases to run, for example wkv6-strong; all if empty."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    threads: int = 1
    """CPU threads; 0 leaves torch's choice."""
    repeats: int = 12
    """Timed rounds of a race; each backend runs once a round."""
    seconds: float = 60.0
    """A race starts no round after this time, once it has run six."""
    seed: int = 0
    """Seed of the inputs."""
    out: str = "runs/bench.jsonl"
    """JSONL file that the records are appended to; empty writes none."""
