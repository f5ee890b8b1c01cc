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
    """Tokens per sequence; on a CPU B1 and B2 also run at batch 8, length 64, as the study did."""
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
    seconds: float = 6.0
    """Seconds of laps after which a contestant leaves a race, once it has run three."""
    patience: float = 600.0
    """Seconds that a contestant has to build, compile, tune and show that it is right."""
    steps: int = 50
    """Training steps of B3."""
    against: tuple[str, ...] = ()
    """Contestants: reference, chunked or triton (this model on that form of the recurrences; the
    reference in B1 only), peers (on the operators of flash-linear-attention and mamba-ssm), gpt2
    (that of transformers, 192 wide, 8 layers), or any model name; each may end in +compile."""
    only: tuple[str, ...] = ()
    """Parts to run, of B1, B2 and B3; all if empty."""
    sweep: tuple[int, ...] = ()
    """Run instead over these lengths, with batch_size x seq_len tokens a step at each."""
    batches: tuple[int, ...] = ()
    """Run instead over these batch sizes."""
    precisions: tuple[str, ...] = ()
    """Run instead over these precisions."""
    profile: str = ""
    """Folder for a trace of one training step of each contestant (Chrome's trace viewer) and its
    table of operators; empty writes none."""
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
    """Measure the recurrences beside other forms and other projects' operators."""

    shapes: tuple[str, ...] = ()
    """Cases: wkv6-BxTxHxN, with -trained, -strong or -mixed for other decays, ssd-BxTxHxPxN, or
    kernel (batch 8, length 2048); if empty, those of CPU or GPU training."""
    against: tuple[str, ...] = ()
    """Contestants: reference, chunked, triton, chunked+compile, fla, mamba; if empty, reference on
    a CPU, all but reference and triton on a GPU."""
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    """Of the operands; if empty, bf16 on a GPU and fp32 on a CPU."""
    cold: bool = False
    """Compile into empty caches: the first call then takes what it takes on a new machine."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    threads: int = 1
    """CPU threads; 0 leaves torch's choice."""
    warmup: int = 2
    """Rounds before the timed ones."""
    repeats: int = 12
    """Timed rounds of a race; each contestant runs once a round."""
    seconds: float = 6.0
    """Seconds of laps after which a contestant leaves a race, once it has run three."""
    patience: float = 600.0
    """Seconds that a contestant has to build, compile, tune and show that it is right."""
    seed: int = 0
    """Seed of the inputs."""
    out: str = "runs/bench.jsonl"
    """JSONL file that the records are appended to; empty writes none."""


@dataclass(frozen=True, kw_only=True)
class BenchDecode:
    """Measure decoding: one token at a time, from a state at some position."""

    model: str = "gf-mh-5m"
    """Model name, preset or YAML file."""
    against: tuple[str, ...] = ()
    """Contestants: peers, reference, chunked, triton, or any model name."""
    vocab_size: int = 16384
    """Number of token ids."""
    batches: tuple[int, ...] = ()
    """Sequences decoded side by side; if empty, 1 and 64 on a GPU, 1 and 8 on a CPU."""
    positions: tuple[int, ...] = ()
    """Tokens read before the timed ones; if empty, 100 and 100,000 on a GPU, 100 and 2,000 on a
    CPU."""
    tokens: int = 32
    """Tokens of each sequence in one lap."""
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    """Of the weights; if empty, bf16 on a GPU and fp32 on a CPU. The state stays fp32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    repeats: int = 12
    """Timed rounds of a race; each contestant runs once a round."""
    seconds: float = 6.0
    """Seconds of laps after which a contestant leaves a race, once it has run three."""
    patience: float = 600.0
    """Seconds that a contestant has to build, compile, tune and show that it is right."""
    seed: int = 0
    """Seed of the weights and of the tokens."""
    out: str = "runs/bench.jsonl"
    """JSONL file that the records are appended to; empty writes none."""
