"""`groundthink report`: records -> report.html."""

from __future__ import annotations

from pathlib import Path

from groundthink.lab.config import Report
from groundthink.lab.generation import require


def run(config: Report) -> None:
    """Write the report of a run and say where it is."""
    from groundthink.report.page import write

    print(write(Path(require(config.run, "runs/NAME"))))
