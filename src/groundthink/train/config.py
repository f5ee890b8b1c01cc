"""What a training run is: model, data and optimisation in one resolved config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from groundthink.data.config import DataConfig
from groundthink.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, cadence and output of a run."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 64
    """Sequences per forward pass."""
    seq_len: int = 64
    """Tokens per sequence."""
    grad_accum: int = 1
    """Forward passes per optimizer step."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the end."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Decay after the warm-up: cosine, warm-up-stable-decay, or none."""
    warmup_steps: int = 500
    """Steps of linear warm-up."""
    decay_fraction: float = 0.2
    """Share of the steps that the wsd schedule decays over."""
    weight_decay: float = 0.1
    """AdamW decay of matrices; norms, biases and recurrence parameters have none."""
    beta1: float = 0.9
    """AdamW first-moment decay."""
    beta2: float = 0.95
    """AdamW second-moment decay."""
    rwkv_lr_mult: float = 1.0
    """Learning-rate factor of the RWKV-6 branch."""
    mamba_lr_mult: float = 1.0
    """Learning-rate factor of the Mamba-2 branch."""
    rwkv_warmup_mult: float = 1.0
    """Warm-up length factor of the RWKV-6 branch."""
    mamba_warmup_mult: float = 1.0
    """Warm-up length factor of the Mamba-2 branch."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 is no clipping."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision; weights and state stay fp32."""
    compile: bool = False
    """Compile each block with torch.compile."""
    cuda_graph: bool = True
    """On a GPU, replay forward and backward as one CUDA graph where a step is one forward pass."""
    carry_state: bool = True
    """Carry the recurrent state across chunks, cut from the graph (needs data.order lanes)."""
    backend: str = "auto"
    """Backend of the recurrences (groundthink doctor)."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes the GPU if there is one."""
    seed: int = 0
    """Seed of the weights and of the data order."""
    log_every: int = 10
    """Steps between progress lines and balance metrics."""
    eval_every: int = 500
    """Steps between validations."""
    eval_tokens: int = 0
    """Validation tokens at each evaluation, always the same ones; 0 is the whole split."""
    sample_every: int = 1000
    """Steps between text samples; 0 is none."""
    save_every: int = 1000
    """Steps between checkpoints."""
    checkpoints: bool = True
    """Write checkpoints."""
    log_states: bool = False
    """Add the state columns: norms, variance, ratio, gate, entropy, update magnitude, stability."""
    tensorboard: bool = True
    """Write TensorBoard events where tensorboard is installed."""


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    out: str = ""
    """Run folder; runs/MODEL-CORPUS-HASH if empty."""
