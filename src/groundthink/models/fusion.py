"""How a parallel block fuses its two branches: one class and one line in `FUSIONS` each.

Every fusion is a sum of an RWKV-6 part and a Mamba-2 part, so that the share of each branch
can be read off. Letters: r and m are the branch outputs [B, T, C], C = d_model.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from groundthink.layers.norms import listened
from groundthink.ops.fusion import branch_gains, channel_gate, token_gate


class Fusion(nn.Module):
    """y = r_part + m_part. Subclasses define `parts` and `init_weights`."""

    honours_gate_init = True

    def __init__(self, d_model: int, gate_init: float):
        super().__init__()
        self.gate_init = gate_init

    def parts(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The additive parts of the two branches, [B, T, C] each."""
        raise NotImplementedError

    def forward(self, r: Tensor, m: Tensor) -> Tensor:
        r_part, m_part = self.parts(r, m)
        return r_part + m_part

    def join(self, x: Tensor, r: Tensor, m: Tensor, norms: nn.ModuleList | None) -> Tensor:
        """x plus the fusion of r and m, each after its own of the two `norms` if there are any."""
        if norms is not None:
            r, m = norms[0](r), norms[1](m)
        return x + self(r, m)

    def share(self, r: Tensor, m: Tensor) -> Tensor:
        """RWKV share in [0, 1], a scalar: norm of the RWKV part over the sum of both norms."""
        r_part, m_part = (part.float().norm() for part in self.parts(r, m))
        return r_part / (r_part + m_part)


def _weights(norms: nn.ModuleList | None) -> tuple[Tensor | None, Tensor | None, float]:
    """Weights of the two norms and their epsilon; nothing without norms."""
    if norms is None:
        return None, None, 0.0
    return norms[0].weight, norms[1].weight, norms[0].eps  # pyright: ignore


class Gains(Fusion):
    """Per-channel gains, g_r r + g_m m, the same at every position."""

    def __init__(self, d_model: int, gate_init: float):
        super().__init__(d_model, gate_init)
        self.rwkv_gain = nn.Parameter(torch.empty(d_model))
        self.mamba_gain = nn.Parameter(torch.empty(d_model))

    def init_weights(self) -> None:
        nn.init.constant_(self.rwkv_gain, self.gate_init)
        nn.init.constant_(self.mamba_gain, 1 - self.gate_init)

    def parts(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.rwkv_gain * r, self.mamba_gain * m

    def join(self, x: Tensor, r: Tensor, m: Tensor, norms: nn.ModuleList | None) -> Tensor:
        """In one pass, unless somebody listens to a part of it."""
        if listened(self) or (norms is not None and listened(norms)):
            return super().join(x, r, m, norms)
        norm_r, norm_m, eps = _weights(norms)
        return branch_gains(x, r, m, norm_r, norm_m, self.rwkv_gain, self.mamba_gain, eps)


class Gate(nn.Module):
    """sigmoid(W [r; m] + b), the RWKV share; W = 0 and b = logit(gate_init) at step 0."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.proj = nn.Linear(2 * d_model, width)

    def logits(self, r: Tensor, m: Tensor) -> Tensor:
        """W [r; m] + b."""
        w_r, w_m = self.proj.weight.chunk(2, dim=1)
        return nn.functional.linear(r, w_r, self.proj.bias) + nn.functional.linear(m, w_m)

    def forward(self, r: Tensor, m: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(r, m))


class Gated(Fusion):
    """One gate per token, a r + (1 - a) m."""

    width: int | None = 1

    def __init__(self, d_model: int, gate_init: float):
        super().__init__(d_model, gate_init)
        self.gate = Gate(d_model, self.width or d_model)

    def init_weights(self) -> None:
        nn.init.zeros_(self.gate.proj.weight)
        nn.init.constant_(self.gate.proj.bias, math.log(self.gate_init / (1 - self.gate_init)))

    def parts(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        a = self.gate(r, m)
        return a * r, (1 - a) * m

    def forward(self, r: Tensor, m: Tensor) -> Tensor:
        return m + self.gate(r, m) * (r - m)

    def join(self, x: Tensor, r: Tensor, m: Tensor, norms: nn.ModuleList | None) -> Tensor:
        """In one pass, unless somebody listens to a part of it."""
        if listened(self) or (norms is not None and listened(norms)):
            return super().join(x, r, m, norms)
        norm_r, norm_m, eps = _weights(norms)
        proj = self.gate.proj
        return token_gate(x, r, m, norm_r, norm_m, proj.weight, proj.bias, eps)[0]

    def share(self, r: Tensor, m: Tensor) -> Tensor:
        """RWKV share in [0, 1], a scalar: the mean gate."""
        return self.gate(r, m).float().mean()


class ChannelGated(Gated):
    """One gate per token and channel, a r + (1 - a) m."""

    width = None

    def join(self, x: Tensor, r: Tensor, m: Tensor, norms: nn.ModuleList | None) -> Tensor:
        """In one pass after the norms, unless somebody listens to a part of it."""
        if listened(self):
            return super().join(x, r, m, norms)
        if norms is not None:
            r, m = norms[0](r), norms[1](m)
        return channel_gate(x, r, m, self.gate.logits(r, m))


class WeightedSum(Fusion):
    """One unconstrained weight per layer, a r + (1 - a) m."""

    def __init__(self, d_model: int, gate_init: float):
        super().__init__(d_model, gate_init)
        self.alpha = nn.Parameter(torch.empty(()))

    def init_weights(self) -> None:
        nn.init.constant_(self.alpha, self.gate_init)

    def parts(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha * r, (1 - self.alpha) * m


class Residual(Fusion):
    """RWKV as it is plus projected Mamba, r + P m."""

    honours_gate_init = False

    def __init__(self, d_model: int, gate_init: float):
        super().__init__(d_model, gate_init)
        self.mamba_proj = nn.Linear(d_model, d_model, bias=False)

    def init_weights(self) -> None:
        nn.init.normal_(self.mamba_proj.weight, std=0.01)

    def parts(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return r, self.mamba_proj(m)


class ConcatProject(Fusion):
    """One projection of both branches, W [r; m]."""

    honours_gate_init = False

    def __init__(self, d_model: int, gate_init: float):
        super().__init__(d_model, gate_init)
        self.rwkv_proj = nn.Linear(d_model, d_model, bias=False)
        self.mamba_proj = nn.Linear(d_model, d_model, bias=False)

    def init_weights(self) -> None:
        nn.init.normal_(self.rwkv_proj.weight, std=0.02)
        nn.init.normal_(self.mamba_proj.weight, std=0.02)

    def parts(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        return self.rwkv_proj(r), self.mamba_proj(m)


FUSIONS: dict[str, type[Fusion]] = {
    "hy": Gains,
    "gf": Gated,
    "hgf": ChannelGated,
    "ws": WeightedSum,
    "rf": Residual,
    "cp": ConcatProject,
}
