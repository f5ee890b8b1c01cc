"""Traces of what an action runs, for Chrome's trace viewer and as a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def write(action: Callable[[], object], path: Path) -> None:
    """Write path.json.gz, the trace of an action, and path.txt, its operators by their time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as found:
        action()
    found.export_chrome_trace(f"{path}.json.gz")
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=60)
    Path(f"{path}.txt").write_text(table, encoding="utf-8")
