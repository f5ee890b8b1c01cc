"""Runs all tests marked `gpu` in several processes and leaves a record of them.

python benchmarks/gpu_tests.py benchmarks/records/NAME.jsonl [processes]

Most of the time goes into compiling kernels: the processes share Triton's cache.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROCESSES = 8


def run(processes: int, errors: Path) -> tuple[dict[str, int], float, str]:
    """How many tests passed, failed, ...; seconds; and what pytest said."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "--tb=short"]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "-n", str(processes), "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"GROUNDTHINK_ERRORS": str(errors)},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    last = said.strip().splitlines()[-1] if said.strip() else ""
    counts = {
        what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)
    }
    return counts, time.monotonic() - start, said


def worst(errors: Path) -> list[dict[str, Any]]:
    """Largest relative RMS errors by op and dtype, of values and of gradients."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in errors.read_text(encoding="utf-8").splitlines() if errors.exists() else ():
        noted = json.loads(line)
        row = found.setdefault(
            (noted["op"], noted["dtype"]), {"values": 0.0, "gradients": 0.0, "n": 0}
        )
        row["n"] += 1
        for what in ("values", "gradients"):
            row[what] = max(row[what], noted[what])
    return [
        {
            "kind": "bench",
            "name": f"error {op} {dtype}",
            "value": row["gradients"],
            "unit": "relative RMS",
            **row,
        }
        for (op, dtype), row in sorted(found.items())
    ]


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here")
        return 1
    import triton

    target = Path(sys.argv[1])
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else PROCESSES
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors.jsonl"
        counts, seconds, said = run(processes, errors)
        rows = worst(errors)
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    provenance = {
        "kind": "provenance",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "git": git.stdout.strip(),
        "date": date.today().isoformat(),
    }
    summary = {
        "kind": "bench",
        "name": "gpu tests",
        "value": counts.get("passed", 0),
        "unit": "passed",
        "n": sum(counts.values()),
        "seconds": round(seconds, 1),
        **{what: n for what, n in counts.items() if what != "passed"},
    }
    with target.open("a", encoding="utf-8") as file:
        for row in (provenance, summary, *rows):
            file.write(json.dumps(row) + "\n")
    print(said if counts.get("failed") or not counts.get("passed") else "", summary, sep="\n")
    for row in rows:
        print(f"{row['name']:40s} values {row['values']:.1e} gradients {row['gradients']:.1e}")
    return 1 if counts.get("failed") or counts.get("error") or counts.get("errors") else 0


if __name__ == "__main__":
    sys.exit(main())
