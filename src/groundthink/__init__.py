"""groundthink: language models whose every block runs RWKV-6 and Mamba-2 side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundthink.diagnose.tape import tape
    from groundthink.layers.state import State
    from groundthink.models.build import build
    from groundthink.models.config import ModelConfig
    from groundthink.models.pretrained import load

__all__ = ["ModelConfig", "State", "build", "load", "tape"]

_HOMES = {
    "ModelConfig": "groundthink.models.config",
    "State": "groundthink.layers.state",
    "build": "groundthink.models.build",
    "load": "groundthink.models.pretrained",
    "tape": "groundthink.diagnose.tape",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the command line starts without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'groundthink' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
