"""`groundthink import`: published checkpoints -> model folders."""

from __future__ import annotations

from pathlib import Path

from groundthink.errors import UserError
from groundthink.lab.config import Import


def rwkv6(config: Import) -> None:
    """Convert an official RWKV-6 .pth."""
    from groundthink.models.convert import import_rwkv6

    convert(import_rwkv6, config, "FILE.pth")


def mamba2(config: Import) -> None:
    """Convert a Hugging Face Mamba-2 folder."""
    from groundthink.models.convert import import_mamba2

    convert(import_mamba2, config, "HF_DIR")


def convert(convert_to, config: Import, example: str) -> None:
    """Run one conversion and say how to load the result."""
    if not config.source or not config.out:
        raise UserError(f"give a source and a folder to write: {example} --out DIR")
    convert_to(Path(config.source), Path(config.out))
    print(f'{config.out}: load it with groundthink.load("{config.out}")')
