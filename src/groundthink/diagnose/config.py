"""Config of `groundthink check`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """Run the gates on a trained model."""

    run: str = ""
    """Run folder."""
    only: tuple[str, ...] = ()
    """Ids of the gates to run (groundthink list gates); all if empty."""
    allow_untrained: bool = False
    """Also run gates that mean nothing on an untrained model; every note then says so."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""
