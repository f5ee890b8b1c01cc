"""AdamW by component, and the learning-rate schedule as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from groundthink.models.components import branch
from groundthink.train.config import TrainConfig

FUSED = ("cuda", "cpu", "mps", "xpu")
"""Device types on which torch has a fused AdamW kernel."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: the matrices of linear maps, convolutions and embeddings.

    Norms, biases and what belongs to a recurrence (LoRA factors, bonus, decays, dt) have none.
    """
    return name.endswith(".weight") and parameter.ndim >= 2


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW groups by what components and parameters differ in; every parameter is in exactly one.

    A group costs a launch, so that those of the same rates and decay are one. The decay base of
    RWKV-6 learns at twice the rate, as published (Peng et al. 2024).
    """
    lr = {"rwkv6": config.rwkv_lr_mult, "mamba2": config.mamba_lr_mult}
    warmup = {"rwkv6": config.rwkv_warmup_mult, "mamba2": config.mamba_warmup_mult}
    groups: dict[tuple[float, ...], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part = branch(name)
        settings = {
            "weight_decay": config.weight_decay if decays(name, parameter) else 0.0,
            "lr_mult": lr.get(part, 1.0) * (2.0 if name.endswith("rwkv6.time_decay") else 1.0),
            "warmup_mult": warmup.get(part, 1.0),
        }
        group = groups.setdefault(tuple(settings.values()), {"params": [], **settings})
        group["params"].append(parameter)
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    return list(groups.values())


def adamw(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, fused where torch has the kernel.

    On a GPU its steps can be recorded in a CUDA graph: learning rates are tensors there.
    """
    recordable = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=device.type in FUSED or None,
        capturable=recordable,
    )
    if recordable:
        rates = torch.full((len(optimizer.param_groups),), config.lr, device=device)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return optimizer


def step_unless(
    skip: torch.Tensor, optimizer: torch.optim.Optimizer, divisor: torch.Tensor | None = None
) -> None:
    """A step of fused AdamW, decided on the device: the host is not asked, so a graph can hold it.

    Args:
        skip: where it is 1 all weights and moments stay as they are; a scalar in fp32.
        optimizer: fused, and without a loss scaler: these are the words that it would speak.
        divisor: of the gradients.
    """
    words = {"found_inf": skip, "grad_scale": divisor}
    for name, value in words.items():
        setattr(optimizer, name, value)
    optimizer.step()
    for name in words:
        delattr(optimizer, name)


def set_lr(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Give every group its learning rate for `step`; returns the one without multipliers."""
    groups = optimizer.param_groups
    rates = [
        config.lr * group["lr_mult"] * factor(step, config, group["warmup_mult"])
        for group in groups
    ]
    memory = groups[0]["lr"]
    if isinstance(memory, torch.Tensor):  # they lie in one piece of memory
        memory.as_strided((len(rates),), (1,), 0).copy_(torch.tensor(rates))
    else:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
    return config.lr * factor(step, config)


def factor(step: int, config: TrainConfig, warmup_mult: float = 1.0) -> float:
    """Learning rate at `step` over the peak; the first step is 1, the last is `config.steps`.

    A linear ramp over ``warmup_steps * warmup_mult`` steps times a decay that all components
    share, so that two components differ in their warm-up only.
    """
    warmup = config.warmup_steps * warmup_mult
    return min(1.0, step / warmup if warmup else 1.0) * _decay(step, config)


def _decay(step: int, config: TrainConfig) -> float:
    floor = config.min_lr / config.lr
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        rest = max(1, config.steps - config.warmup_steps)
        done = min(1.0, max(0.0, (step - config.warmup_steps) / rest))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    length = max(1.0, config.decay_fraction * config.steps)
    return floor + (1 - floor) * min(1.0, (config.steps - step) / length)
