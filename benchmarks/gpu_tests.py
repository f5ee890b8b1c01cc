"""Runs all tests marked `gpu` in several processes and leaves a record of them.

python benchmarks/gpu_tests.py benchmarks/records/NAME.jsonl [processes]

Most of the time goes into compiling kernels: the processes share Triton's cache.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from groundthink import records

ROOT = Path(__file__).parents[1]
PROCESSES, SECONDS = 8, 240
OUTCOME = re.compile(r"\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED)")


def run(processes: int, errors: Path) -> tuple[dict[str, int], float]:
    """How many tests passed, failed, ... in SECONDS, and seconds.

    What pytest says of the others than the passed ones is passed on.
    """
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-vv", "--tb=short"]
    command += ["-n", str(processes), "--dist", "worksteal", "-p", "no:cacheprovider"]
    start, counts = time.monotonic(), {}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"GROUNDTHINK_ERRORS": str(errors)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pytest:
        limit = threading.Timer(SECONDS, pytest.terminate)
        limit.start()
        for line in pytest.stdout or ():
            if found := OUTCOME.match(line):
                outcome = found[1].lower()
                counts[outcome] = counts.get(outcome, 0) + 1
            if "PASSED" not in line and not line.startswith("tests/"):
                print(line, end="", flush=True)
        limit.cancel()
    return counts, time.monotonic() - start


def worst(errors: Path) -> list[dict[str, Any]]:
    """Largest relative RMS errors by op and dtype, of values and of gradients."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in errors.read_text(encoding="utf-8").splitlines() if errors.exists() else ():
        noted = json.loads(line)
        op, dtype = noted["op"], noted["dtype"]
        row = found.setdefault((op, dtype), {"op": op, "dtype": dtype, "n": 0})
        row["n"] += 1
        for what in ("values", "gradients"):
            row[what] = max(row.get(what, 0.0), noted[what])
    return [found[key] for key in sorted(found)]


def main() -> int:
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here")
        return 1
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else PROCESSES
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors.jsonl"
        counts, seconds = run(processes, errors)
        rows = worst(errors)
    out = records.Records(sys.argv[1], records.environment())
    fields = {"value": counts.get("passed", 0), "n": sum(counts.values()), "tests": counts}
    fields["note"] = f"cut after {SECONDS} s" if seconds > SECONDS else ""
    out.append("bench", name="GPU tests", unit="passed", seconds=round(seconds, 1), **fields)
    for row in rows:
        name = f"error of {row['op']} in {row['dtype']}"
        out.append("bench", name=name, unit="relative RMS", value=row["gradients"], **row)
        print(f"{name:40s} values {row['values']:.1e} gradients {row['gradients']:.1e}")
    print(f"{counts} in {seconds:.0f} s {fields['note']}")
    whole = "passed" in counts and not counts.keys() - {"passed", "skipped"}
    return int(not whole or seconds > SECONDS)


if __name__ == "__main__":
    sys.exit(main())
