"""The Mamba-2 mixer: a short causal convolution and a gated norm around the SSD recurrence."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundthink.errors import UserError
from groundthink.layers.norms import GatedRMSNorm, product_dtype
from groundthink.ops.conv import conv_silu_dt, parts
from groundthink.ops.dispatch import around
from groundthink.ops.memory import split
from groundthink.ops.ssd import ssd


class Mamba2(nn.Module):
    """Dao and Gu 2024, "Transformers are SSMs", section 7, with the released initialisation.

    Shape legend: B batch, T tokens, C d_model, D = expand C inner width, H heads, P head_size,
    G groups, N state_size.

    Args:
        d_model: C; expand C is a multiple of head_size.
        state_size: N.
        head_size: P.
        expand: inner width over d_model.
        groups: G, groups of heads that share B and C; divides H.
        conv: width of the causal convolution.
        backend: backend of the recurrence (`groundthink.ops.ssd`).

    Raises:
        UserError: the heads do not fill the inner width, or the groups do not divide the heads.
    """

    def __init__(
        self,
        d_model: int,
        state_size: int = 64,
        head_size: int = 64,
        expand: int = 2,
        groups: int = 1,
        conv: int = 4,
        *,
        backend: str = "auto",
    ):
        super().__init__()
        inner = expand * d_model
        if inner % head_size:
            step = head_size // math.gcd(head_size, expand)
            near = max(1, round(d_model / step)) * step
            raise UserError(
                f"d_model {d_model} times mamba_expand {expand} is not a multiple of "
                f"mamba_head_size {head_size}; the nearest d_model that fits is {near}"
            )
        heads = inner // head_size
        if heads % groups:
            raise UserError(f"mamba_groups {groups} does not divide the {heads} heads of Mamba-2")
        self.backend = backend
        self.heads, self.groups = (heads, head_size), (groups, state_size)
        shared = groups * state_size
        channels = inner + 2 * shared
        self.splits = (inner, channels, heads), (inner, shared, shared)
        self.in_proj = nn.Linear(d_model, inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, conv, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(inner, groups, eps=1e-5)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Steps log-uniform in [0.001, 0.1], A uniform in [1, 16], D = 1; the rest is torch's."""
        for module in (self.in_proj, self.conv1d, self.out_proj):
            module.reset_parameters()
        step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        step.clamp_(min=1e-4)
        self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """ssm [B, H, P, N], a matrix a head, and conv [B, D + 2 G N, width - 1], its window."""
        like, weight = self.A_log, self.conv1d.weight
        full = torch.promote_types(like.dtype, torch.float32)
        return {
            "ssm": like.new_zeros(batch, *self.heads, self.groups[1], dtype=full),
            "conv": weight.new_zeros(batch, weight.shape[0], weight.shape[2] - 1),
        }

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gate z, what is convolved, and the step sizes, from x [B, T, C]."""
        weight, sizes = self.in_proj.weight, self.splits[0]
        if x.shape[1] == 1 and not torch.is_grad_enabled():
            return F.linear(x, weight).split(sizes, dim=-1)
        return parts(x.to(product_dtype(x)), weight, sizes, backend=around(self.backend))

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C] -> y [B, T, C] and the state after the last token."""
        state = state or self.init_state(x.shape[0])
        around_it = around(self.backend)
        z, xbc, dt = self.project(x)
        xbc, dt, window = conv_silu_dt(
            xbc,
            dt,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,  # pyright: ignore
            self.dt_bias,
            state["conv"],
            reset,
            backend=around_it,
        )
        u, b, c = split(xbc, self.splits[1])
        full = torch.promote_types(self.A_log.dtype, torch.float32)
        y, ssm = ssd(
            u.unflatten(-1, self.heads),
            dt,
            -torch.exp(self.A_log.to(full)),
            b.unflatten(-1, self.groups),
            c.unflatten(-1, self.groups),
            self.D,
            state["ssm"],
            reset,
            backend=self.backend,
        )
        y = self.norm(y.flatten(-2), z, around_it)
        return self.out_proj(y), {"ssm": ssm, "conv": window}
