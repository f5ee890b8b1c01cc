"""The language model whose blocks run RWKV-6 and Mamba-2 side by side.

Shape legend: B batch, T tokens, C d_model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from groundthink.errors import UserError, unknown
from groundthink.layers.attention import Attention
from groundthink.layers.channel_mix import ChannelMix
from groundthink.layers.mamba2 import Mamba2
from groundthink.layers.mlp import MLP
from groundthink.layers.norms import RMSNorm, entered, make_norm
from groundthink.layers.rwkv6 import RWKV6
from groundthink.layers.state import LayerState, State
from groundthink.models.base import LanguageModel
from groundthink.models.config import ModelConfig
from groundthink.models.fusion import FUSIONS
from groundthink.models.layout import expand
from groundthink.ops.dispatch import check_backend
from groundthink.ops.wkv6 import BACKENDS

SMALL = 1 << 24
"""Elements of the residual stream up to which two mixers run side by side on a GPU."""
Mixing = Callable[[], tuple[Tensor, dict[str, Tensor]]]


def make_mixer(name: str, c: ModelConfig, layer: int, backend: str) -> nn.Module:
    """The sequence mixer `name` of block `layer`."""
    if name == "rwkv6":
        return RWKV6(c.d_model, c.rwkv_head_size, layer, c.n_layers, backend=backend)
    if name == "mamba2":
        return Mamba2(
            c.d_model,
            c.mamba_state_size,
            c.mamba_head_size,
            c.mamba_expand,
            c.mamba_groups,
            c.mamba_conv,
            backend=backend,
        )
    return Attention(c.d_model, c.attention_heads)


def make_ffn(c: ModelConfig, layer: int) -> nn.Module:
    """The channel mixing of block `layer`; RWKV-6 rounds its width down to a multiple of 32."""
    hidden = int(c.ffn_mult * c.d_model)
    if c.ffn == "gelu":
        return MLP(c.d_model, hidden)
    return ChannelMix(c.d_model, hidden // 32 * 32, layer, c.n_layers)


def gate_init(c: ModelConfig, layer: int) -> float:
    """RWKV share of a layer at step 0."""
    value = c.gate_init_layers[layer] if c.gate_init_layers else c.gate_init
    if not 0 < value < 1:
        raise UserError(f"gate_init {value} must lie between 0 (all Mamba) and 1 (all RWKV)")
    return value


def _leaves_room(x: Tensor) -> bool:
    """Whether a mixer on x fills no GPU, in a graph that can run another beside it."""
    if torch.compiler.is_compiling() or not x.is_cuda or x.numel() > SMALL:
        return False
    return torch.cuda.is_current_stream_capturing()


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def side_by_side(x: Tensor, first: Mixing, second: Mixing) -> list[tuple[Tensor, dict]]:
    """Both results; `second` runs on a stream of its own, and so does its gradient.

    Args:
        x: what both read.
    """
    main, side = torch.cuda.current_stream(), _side(x.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        y, state = second()
    results = [first(), (y, state)]
    main.wait_stream(side)
    x.record_stream(side)
    for tensor in (y, *state.values()):
        tensor.record_stream(main)
    return results


class Block(nn.Module):
    """x += fusion(mixers(norm(x))); x += channel_mixing(norm(x)). One mixer needs no fusion."""

    def __init__(self, c: ModelConfig, layer: int, mixers: tuple[str, ...], backend: str):
        super().__init__()
        self.mixers = mixers
        self.norm1 = make_norm(c.norm, c.d_model, c.norm_eps)
        for name in mixers:
            self.add_module(name, make_mixer(name, c, layer, backend))
        if self.parallel:
            if c.branch_norm == "rms":
                self.branch_norm = nn.ModuleList(RMSNorm(c.d_model, c.norm_eps) for _ in mixers)
            self.fusion = FUSIONS[c.fusion](c.d_model, gate_init(c, layer))
            if c.mamba_direct:
                self.mamba_direct = nn.Parameter(torch.empty(c.d_model))
        if c.ffn != "none":
            self.norm2 = make_norm(c.norm, c.d_model, c.norm_eps)
            self.ffn = make_ffn(c, layer)

    @property
    def parallel(self) -> bool:
        """Whether two mixers run side by side and are fused."""
        return len(self.mixers) == 2

    def normed(self, r: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the branches after their norms, if they have them."""
        if not hasattr(self, "branch_norm"):
            return r, m
        return self.branch_norm[0](r), self.branch_norm[1](m)

    def init_state(self, batch: int) -> LayerState:
        names = [*self.mixers, "ffn"] if hasattr(self, "ffn") else self.mixers
        parts = {name: getattr(self, name).init_state(batch) for name in names}
        return {name: part for name, part in parts.items() if part}

    def mix(
        self, x: list[Tensor], old: LayerState, reset: Tensor | None
    ) -> tuple[list[Tensor], LayerState]:
        """Outputs of the mixers and their states; x is the same for both."""
        runs = [
            functools.partial(getattr(self, name), own, old.get(name), reset)
            for name, own in zip(self.mixers, x, strict=False)
        ]
        if self.parallel and _leaves_room(x[0]):
            results = side_by_side(x[1], *runs)
        else:
            results = [run() for run in runs]
        new = dict(zip(self.mixers, (state for _, state in results), strict=True))
        return [y for y, _ in results], new

    def forward(
        self, x: Tensor, state: LayerState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        old = state or {}
        x, *normed = entered(self.norm1, x)
        branches, new = self.mix(normed, old, reset)
        if not self.parallel:
            x = x + branches[0]
        elif hasattr(self, "mamba_direct"):
            r, m = self.normed(*branches)
            x = self.fusion.join(x, r, m, None) + self.mamba_direct * m
        else:
            x = self.fusion.join(x, branches[0], branches[1], getattr(self, "branch_norm", None))
        if hasattr(self, "ffn"):
            x, new["ffn"] = self.channel_mix(x, old.get("ffn"), reset)
        return x, {name: part for name, part in new.items() if part}

    def channel_mix(
        self, x: Tensor, old: dict[str, Tensor] | None, reset: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The residual stream after the channel mixing, and the state of that."""
        if isinstance(self.ffn, MLP):
            joined = self.ffn.joins(self.norm2, x)
            if joined is not None:
                return joined, {}
        x, normed, _ = entered(self.norm2, x)
        y, new = self.ffn(normed, old, reset)
        return x + y, new


class HybridLM(LanguageModel):
    """Embedding, blocks, final norm and head; recurrent state in and out.

    Args:
        config: layout, sizes and fusion.
        backend: backend of the recurrences.

    Raises:
        UserError: the sizes or names in the config do not fit.
    """

    def __init__(self, config: ModelConfig, backend: str = "auto"):
        check(config)
        check_backend("model", BACKENDS, backend)  # refused here, not at the first token
        super().__init__(config)
        if config.embed_norm:
            self.embed_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        layers = expand(config.layout, config.n_layers)
        self.recurrent = ("attention",) not in layers
        self.blocks = nn.ModuleList(
            Block(config, i, mixers, backend) for i, mixers in enumerate(layers)
        )

    def init_state(self, batch: int) -> State:
        """The state before the first token: zeros."""
        return State([block.init_state(batch) for block in self.blocks])  # pyright: ignore

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        reset: Tensor | None = None,
        return_states: bool = False,
    ) -> tuple[Tensor, Any]:
        """Next-token logits, and the state after the last token.

        Args:
            tokens: int64 [B, T].
            state: state before the first token; zeros if None.
            reset: bool [B, T]; where true the state is zeroed before that token.
            return_states: give the named states of all layers instead of the tree (`named_states`).

        Returns:
            logits [B, T, V] and a State, or a dict if `return_states`.
        """
        if return_states:
            return named_states(self, tokens, state, reset)
        x, new = self.features(tokens, state, reset)
        return self.head(x), new

    def features(
        self, tokens: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What the head reads, [B, T, C], and the state after the last token."""
        x = self.embed(tokens)
        if hasattr(self, "embed_norm"):
            x = self.embed_norm(x)
        old = state.layers if state else [None] * len(self.blocks)
        new = []
        for block, layer in zip(self.blocks, old, strict=True):
            x, layer = block(x, layer, reset)
            new.append(layer)
        return self.norm(x), State(new)


def named_states(
    model: LanguageModel, tokens: Tensor, state: State | None, reset: Tensor | None
) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and the true states of all layers by name.

    Returns:
        logits [B, T, V] and a dict: rwkv_state [L, B, H, K, V], mamba_state [L, B, H, P, N] and
        gate [L] (mean RWKV share of each parallel layer over this call), each where the model has
        it, and `state`, the whole tree.
    """
    branches: dict[Block, list[Tensor]] = {}
    blocks = [block for block in model.modules() if isinstance(block, Block) and block.parallel]
    hooks = [
        getattr(block, name).register_forward_hook(
            lambda _, args, output, block=block: branches.setdefault(block, []).append(output[0])
        )
        for block in blocks
        for name in block.mixers
    ]
    try:
        logits, new = model(tokens, state, reset)
    finally:
        for hook in hooks:
            hook.remove()
    shares = [block.fusion.share(*block.normed(*branches[block])) for block in blocks]
    stacks = {
        "rwkv_state": new.part("rwkv6", "wkv"),
        "mamba_state": new.part("mamba2", "ssm"),
        "gate": shares,
    }
    return logits, {name: torch.stack(x) for name, x in stacks.items() if x} | {"state": new}


def check(c: ModelConfig) -> None:
    """Raise UserError for sizes and names that no model can have."""
    for name in ("vocab_size", "d_model", "n_layers", "rwkv_head_size", "mamba_head_size"):
        if getattr(c, name) < 1:
            raise UserError(f"model.{name} is {getattr(c, name)}; it must be at least 1")
    if c.fusion not in FUSIONS:
        raise unknown("fusion", c.fusion, FUSIONS)
    if c.gate_init_layers and len(c.gate_init_layers) != c.n_layers:
        raise UserError(
            f"gate_init_layers has {len(c.gate_init_layers)} values for {c.n_layers} layers; "
            "give one a layer"
        )
    if not FUSIONS[c.fusion].honours_gate_init and (c.gate_init != 0.5 or c.gate_init_layers):
        raise UserError(
            f"fusion {c.fusion} has no gate; leave gate_init at 0.5 or choose hy, gf, hgf or ws"
        )
