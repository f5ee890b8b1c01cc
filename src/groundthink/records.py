"""The one on-disk record: JSON lines, each a dict with a `kind`, headed by where it came from."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records:
    """Append-only writer of one JSONL file; every line is on disk when `append` returns.

    The first line of a new file is the provenance: config hash, data hash, git hash, seed,
    device and versions. It is the origin of all lines that follow it.
    """

    def __init__(self, path: str | Path, provenance: Mapping[str, Any]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.append("provenance", **provenance)

    def append(self, kind: str, **fields: Any) -> Record:
        """Write one record and return it; numbers that are not finite become null."""
        record = {"kind": kind, "time": round(time.time(), 3), **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(record), ensure_ascii=False) + "\n")
        return record


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return (
        value
        if isinstance(value, str | int | bool | None)
        else _plain(value.item() if hasattr(value, "item") else str(value))
    )


def read(path: str | Path, *kinds: str) -> list[Record]:
    """Records of a file, of the named kinds if any; an unfinished last line is left out."""
    return [record for record in _lines(Path(path)) if not kinds or record["kind"] in kinds]


def _lines(path: Path) -> Iterator[Record]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def environment() -> Record:
    """Versions, machine and git commit: what a reader needs to repeat a measurement."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    import torch

    cuda = torch.cuda.is_available()
    return {
        "groundthink": of("groundthink"),
        "git": git_hash(),
        "python": platform.python_version(),
        "torch": of("torch"),
        "numpy": of("numpy"),
        "triton": of("triton"),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if cuda
        else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
    }


def git_hash() -> str | None:
    """Commit of the source tree of the package, with `+` if it has changes; None outside one."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty else "")
