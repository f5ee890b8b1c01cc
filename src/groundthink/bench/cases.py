"""The cases of `bench ops`: an operator, a shape and a decay regime, and its operands."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from groundthink.errors import UserError
from groundthink.ops.testing import REGIMES, log_decays

Operands = tuple[Tensor, ...]

CPU = (
    *(f"wkv6-4x256x4x64-{regime}" for regime in REGIMES),
    "wkv6-8x256x4x32",
    "ssd-1x512x8x64x64",
    "ssd-8x256x4x64x64",
)
"""What runs on a CPU where no shapes are asked for."""
GPU = (
    "wkv6-64x256x2x64",
    "wkv6-32x512x3x64",
    "wkv6-64x256x4x32",
    "wkv6-16x2048x12x64",
    "wkv6-1x32768x12x64",
    "ssd-64x256x4x64x64",
    "ssd-16x2048x24x64x128",
    "ssd-1x32768x24x64x128",
)
"""What runs on a GPU: the recurrences of 5M, 8M and 125M models, and one long sequence."""
KERNEL = ("wkv6-8x2048x4x64", "ssd-8x2048x8x64x64")
"""`kernel`: batch 8, length 2048, the shape of the study's kernel benchmark."""


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        op: wkv6 or ssd.
        shape: [B, T, H, N] of wkv6, [B, T, H, P, N] of ssd (one group).
        regime: of the decays of wkv6 (`groundthink.ops.testing`).
    """

    op: str
    shape: tuple[int, ...]
    regime: str = "initial"

    @classmethod
    def parse(cls, name: str) -> Case:
        """The case of a name such as wkv6-64x256x2x64, wkv6-4x256x4x64-strong, ssd-1x512x8x64x64.

        Raises:
            UserError: there is no such case.
        """
        wkv6 = re.fullmatch(rf"wkv6-(\d+(?:x\d+){{3}})(?:-({'|'.join(REGIMES)}))?", name)
        ssd = re.fullmatch(r"ssd-(\d+(?:x\d+){4})", name)
        match = wkv6 or ssd
        if match and (shape := tuple(map(int, match[1].split("x")))) and min(shape) > 0:
            return cls("wkv6", shape, wkv6[2] or "initial") if wkv6 else cls("ssd", shape)
        raise UserError(
            f"unknown case {name!r}; write wkv6-BxTxHxN, wkv6-BxTxHxN-REGIME "
            f"({', '.join(REGIMES)}), ssd-BxTxHxPxN, or kernel"
        )

    @property
    def name(self) -> str:
        """The shortest name that `parse` reads."""
        shape = "x".join(map(str, self.shape))
        return f"{self.op}-{shape}" + (f"-{self.regime}" if self.regime != "initial" else "")

    def operands(self, seed: int, dtype: torch.dtype, device: torch.device) -> Operands:
        """r, k, v, log_w, u or x, dt, A, B, C, D; decays, steps, bonus and skip in fp32."""
        g = torch.Generator().manual_seed(seed)
        if self.op == "wkv6":
            *_, h, n = self.shape
            drawn = [_normal(g, *self.shape) for _ in range(3)]
            drawn += [log_decays(self.regime, self.shape, g), _normal(g, h, n)]
            narrow = (True, True, True, False, False)
        else:
            b, t, h, p, n = self.shape
            dt = torch.exp(-5 + _normal(g, b, t, h))
            rate = -(1 + 15 * torch.rand(h, generator=g, dtype=torch.float64))
            B, C = _normal(g, b, t, 1, n), _normal(g, b, t, 1, n)
            drawn = [_normal(g, b, t, h, p), dt, rate, B, C, _normal(g, h)]
            narrow = (True, False, False, True, True, False)
        return tuple(
            x.to(device, dtype if half else torch.float32)
            for x, half in zip(drawn, narrow, strict=True)
        )

    def states(self) -> int:
        """Numbers in the states after all tokens."""
        b, t, h, *sizes = self.shape
        return b * t * h * sizes[0] * sizes[-1]

    def traffic(self, size: int) -> tuple[int, int]:
        """Bytes that the forward pass, and forward and backward, move at least.

        Every operand is read once and every result written once, `size` bytes a number (dt has
        four); the gradient reads the operands again, and no state leaves the chip.
        """
        b, t, h, *sizes = self.shape
        if self.op == "wkv6":
            row = h * sizes[0] * size
            return 5 * b * t * row, 14 * b * t * row
        p, n = sizes
        forward = (2 * h * p + 2 * n) * size + 4 * h
        return b * t * forward, b * t * (forward + (3 * h * p + 4 * n) * size + 8 * h)


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def cases(names: tuple[str, ...], device: torch.device) -> list[Case]:
    """The named cases, or those of the device; `kernel` stands for several.

    Raises:
        UserError: a name is none of a case.
    """
    names = names or (GPU if device.type == "cuda" else CPU)
    return [Case.parse(each) for name in names for each in (KERNEL if name == "kernel" else [name])]
