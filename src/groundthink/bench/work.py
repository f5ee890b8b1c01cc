"""The work that is timed: a training step, a forward pass, and decoding token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.bench.measure import Lap, stopwatch
from groundthink.data.stream import Batch

LR, CLIP = 1e-3, 1.0
DECODED = 32  # tokens in one lap of decoding


def random_batch(vocab_size: int, batch: int, length: int, device: torch.device) -> Batch:
    """Random tokens and the ones after them, with one document boundary, as text has it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (batch, length + 1), generator=generator).to(device)
    reset = torch.zeros(batch, length, dtype=torch.bool, device=device)
    reset[0, length // 2] = True
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), reset)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of fp32, bf16 or fp16; that of fp32 does nothing."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Training:
    """Steps of AdamW with clipped gradients; a recurrent model carries its detached state on."""

    def __init__(self, model: nn.Module, device: torch.device, precision: str = "fp32"):
        self.model, self.device, self.precision = model.train(), device, precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.state = None

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step; loss in nats per token and gradient norm before clipping."""
        self.optimizer.zero_grad()
        loss, _ = self.forward_backward(batch)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, norm

    def forward_backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and logits [B, T, V], with the gradients left in the parameters."""
        with autocast(self.device, self.precision):
            logits, state = self.model(batch.tokens, self.state, batch.reset)
        self.state = state.detach() if self.model.recurrent else None
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        self.scaler.scale(loss).backward()
        return loss.detach(), logits.detach()


def training_lap(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> Lap:
    """One optimizer step a lap."""
    training = Training(model, device, precision)
    return lambda: stopwatch(lambda: training.step(batch), device)


def inference_lap(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> Lap:
    """One forward pass without gradients a lap."""

    def forward() -> None:
        with torch.no_grad(), autocast(device, precision):
            model(batch.tokens)

    return lambda: stopwatch(forward, device)


def decode_lap(model: nn.Module, batch: Batch, device: torch.device, precision: str) -> Lap:
    """DECODED tokens of one sequence a lap, one by one, after a prompt that is not timed."""
    prompt = batch.tokens[:1]
    token = prompt[:, :1]

    def decode(state: object) -> None:
        for _ in range(DECODED):
            _, state = model(token, state)

    def lap() -> float:
        with torch.no_grad(), autocast(device, precision):
            _, state = model(prompt, model.init_state(1))  # pyright: ignore
            return stopwatch(lambda: decode(state), device)

    return lap
