"""Configs of the verbs that join other parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from groundthink.models.config import Sampling


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a text with a trained model."""

    run: str = ""
    """Run, checkpoint or imported model folder."""
    prompt: str = ""
    """Text to continue."""
    tokens: int = 200
    """Tokens to draw."""
    sampling: Sampling = field(default_factory=Sampling)
    save_state: str = ""
    """Write the session here, to go on later."""
    load_state: str = ""
    """Go on from this session."""
    stop_at_end: bool = True
    """Stop at the end-of-text token."""
    checkpoint: str = "last"
    """last or best."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html into a run folder."""

    run: str = ""
    """Run folder."""


@dataclass(frozen=True, kw_only=True)
class List:
    """Print one of the tables."""

    table: str = "models"
    """models, fusions, presets, gates or data."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what works on this machine."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Convert a published checkpoint to a model folder."""

    source: str = ""
    """The .pth file, or the Hugging Face folder."""
    out: str = ""
    """Folder to write."""
