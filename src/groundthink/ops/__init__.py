"""The two recurrences: `wkv6` (RWKV-6) and `ssd` (Mamba-2)."""

from groundthink.ops.ssd import ssd
from groundthink.ops.wkv6 import wkv6

__all__ = ["ssd", "wkv6"]
