"""What a recurrence would keep by its decays alone, whatever was written to it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.diagnose.components import branches
from groundthink.diagnose.tape import tape
from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.rwkv6 import RWKV6
from groundthink.models.base import LanguageModel
from groundthink.ops.shift import ddlerp

ROWS = 8
"""Texts in one forward pass."""


def log_decays(mixer: nn.Module, x: Tensor, last: Tensor | None = None) -> Tensor:
    """Natural log of the factor by which each token shrinks what the state holds, <= 0.

    Args:
        mixer: RWKV6 or Mamba2.
        x: its input [B, T, C].
        last: RWKV-6: its input at the token before the first [B, C]; zeros if None.

    Returns:
        [B, T, C], one a channel of RWKV-6 (a row of a head's matrix), or [B, T, H], one a head of
        Mamba-2.
    """
    if isinstance(mixer, RWKV6):
        last = torch.zeros_like(x[:, 0]) if last is None else last
        first, second = mixer.time_maa_w1, mixer.time_maa_w2
        blend = ddlerp(x, last, mixer.time_maa_x, first, second, mixer.time_maa)[0]
        return -mixer.decay(blend).exp()
    assert isinstance(mixer, Mamba2)
    full = torch.promote_types(mixer.A_log.dtype, torch.float32)
    weight = mixer.in_proj.weight.split(mixer.splits[0])[2]
    step = F.softplus((F.linear(x, weight) + mixer.dt_bias).to(full))
    return -mixer.A_log.to(full).exp() * step


class Retention:
    """Predicted retention of one branch in one layer.

    Attributes:
        kept: share of a write that is left after each distance, mean over texts
            [distances, channels].
        half_life: tokens until half of it is left, at the mean rate of the text [channels].
    """

    def __init__(self, kept: Tensor, rate: Tensor):
        self.kept = kept
        self.half_life = math.log(2) / rate.clamp(min=1e-12)


@torch.no_grad()
def retention(
    model: LanguageModel, texts: Tensor, start: int, distances: list[int]
) -> dict[tuple[int, str], Retention]:
    """Retention over real text of what is written at position `start`, by layer and branch.

    Args:
        texts: int64 [N, T]; T > start + the longest distance.
    """
    kept: dict[tuple[int, str], Tensor] = {}
    rate: dict[tuple[int, str], Tensor] = {}
    modules = dict(model.named_modules())
    patterns = [f"blocks.*.{branch}" for branch in branches(model)]
    for part in texts.split(ROWS):
        with tape(model, *patterns) as calls:
            model.features(part)
        for name, (call,) in calls.items():
            _, layer, branch = name.split(".")
            key = int(layer), branch
            log = log_decays(modules[name], call.inputs[0])[:, start + 1 :]
            sums = F.pad(log.cumsum(1), (0, 0, 1, 0))[:, distances]
            share = len(part) / len(texts)
            kept[key] = kept.get(key, 0) + share * sums.exp().mean(0)
            rate[key] = rate.get(key, 0) - share * log.mean((0, 1))
    return {key: Retention(kept[key], rate[key]) for key in kept}
