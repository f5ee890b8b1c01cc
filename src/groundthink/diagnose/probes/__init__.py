"""Probes: what looks inside a trained model."""

from __future__ import annotations

PROBES = ("balance", "states", "memory", "context", "flow", "drift")
"""Each is a module here, with the probe of the same name, and a module in `report.probes`."""
