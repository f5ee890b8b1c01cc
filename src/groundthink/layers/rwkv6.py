"""RWKV-6 (Finch, x060) time mixing: data-dependent token shift and decay around WKV6."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundthink.errors import UserError
from groundthink.layers.norms import HeadNorm, product_dtype
from groundthink.ops.dispatch import around
from groundthink.ops.shift import project, raw_decay
from groundthink.ops.wkv6 import wkv6


class RWKV6(nn.Module):
    """Peng et al. 2024, "Eagle and Finch", section 4.2, with the released initialisation.

    Shape legend: B batch, T tokens, C d_model, H heads, K = V head_size.

    Args:
        d_model: C, a multiple of head_size.
        head_size: key and value size of a head.
        layer: index of the block; the initial decays and blends depend on the depth.
        n_layers: number of blocks.
        backend: backend of the recurrence (`groundthink.ops.wkv6`).

    Raises:
        UserError: the heads do not fill d_model.
    """

    def __init__(
        self, d_model: int, head_size: int, layer: int, n_layers: int, *, backend: str = "auto"
    ):
        super().__init__()
        if d_model % head_size:
            near = max(1, round(d_model / head_size)) * head_size
            raise UserError(
                f"d_model {d_model} is not a multiple of rwkv_head_size {head_size}; "
                f"the nearest that fits is {near}"
            )
        self.layer, self.n_layers, self.backend = layer, n_layers, backend
        self.heads = (d_model // head_size, head_size)
        mix, decay = (32, 64) if d_model < 4096 else (64, 128)
        self.time_maa_x = nn.Parameter(torch.empty(d_model))
        self.time_maa = nn.Parameter(torch.empty(5, d_model))  # of w, k, v, r, g
        self.time_maa_w1 = nn.Parameter(torch.empty(d_model, 5 * mix))
        self.time_maa_w2 = nn.Parameter(torch.empty(5, mix, d_model))
        self.time_decay = nn.Parameter(torch.empty(d_model))
        self.time_decay_w1 = nn.Parameter(torch.empty(d_model, decay))
        self.time_decay_w2 = nn.Parameter(torch.empty(decay, d_model))
        self.time_faaaa = nn.Parameter(torch.empty(self.heads))
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.ln_x = HeadNorm(d_model, eps=64e-5)  # 1e-5 * 8^2: y is not divided by 8 before it

    @torch.no_grad()
    def init_weights(self) -> None:
        """Decays from 0.9975 to 0.69 across the channels; the output is zero at step 0."""
        c, device = self.time_decay.shape[0], self.time_decay.device
        rise = self.layer / max(1, self.n_layers - 1)  # 0 in the first block, 1 in the last
        fall = 1 - self.layer / self.n_layers
        index = torch.arange(c, device=device)
        blend = (index / c) ** fall
        ramp = torch.linspace(0, 1, c, device=device)
        self.time_maa_x.copy_(1 - blend)
        late = 1 - (index / c) ** (fall / 2)
        self.time_maa.copy_(torch.stack((1 - blend, 1 - blend, 1 - blend - 0.3 * rise, late, late)))
        self.time_decay.copy_(-6 + 5 * ramp ** (0.7 + 1.3 * rise))
        zigzag = 0.1 * ((index + 1) % 3 - 1)
        self.time_faaaa.copy_((rise * (1 - ramp) + zigzag).view(self.heads))
        for first, second in (
            (self.time_maa_w1, self.time_maa_w2),
            (self.time_decay_w1, self.time_decay_w2),
        ):
            nn.init.zeros_(first)
            nn.init.uniform_(second, -0.01, 0.01)
        for linear, gain in (
            (self.receptance, 1),
            (self.key, 0.1),
            (self.value, 1),
            (self.gate, 0.1),
        ):
            nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.ln_x.weight, ((1 + self.layer) / self.n_layers) ** 0.7)
        nn.init.zeros_(self.ln_x.bias)

    def init_state(self, batch: int) -> dict[str, Tensor]:
        """wkv [B, H, K, V], the matrix of every head, and shift [B, C], the last input."""
        like = self.time_decay
        full = torch.promote_types(like.dtype, torch.float32)
        return {
            "wkv": like.new_zeros(batch, *self.heads, self.heads[1], dtype=full),
            "shift": like.new_zeros(batch, like.shape[0]),
        }

    def forward(
        self, x: Tensor, state: dict[str, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, T, C] -> y [B, T, C] and the state after the last token."""
        state = state or self.init_state(x.shape[0])
        around_it = around(self.backend)
        x_w, k, v, r, g, last = project(
            x.to(product_dtype(x)),
            state["shift"],
            self.time_maa_x,
            self.time_maa_w1,
            self.time_maa_w2,
            self.time_maa,
            (self.key.weight, self.value.weight, self.receptance.weight, self.gate.weight),
            reset,
            backend=around_it,
        )
        y, wkv = wkv6(
            r.unflatten(-1, self.heads),
            k.unflatten(-1, self.heads),
            v.unflatten(-1, self.heads),
            None,
            self.time_faaaa,
            state["wkv"],
            reset,
            w_raw=self.decay(x_w, around_it).unflatten(-1, self.heads),
            backend=self.backend,
        )
        return self.output(self.ln_x(y, g, around_it)), {"wkv": wkv, "shift": last}

    def decay(self, x: Tensor, backend: str = "auto") -> Tensor:
        """w_raw = d + LoRA(x) [B, T, C], in fp32 or wider: w lies close to 1."""
        lora = self.time_decay_w1, self.time_decay_w2
        return raw_decay(x, self.time_decay, *lora, backend=backend)
