"""Run folders: their name, their config and their records when a run goes on from a checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from groundthink import config as configs
from groundthink import records
from groundthink.errors import UserError
from groundthink.train.checkpoint import write_atomically
from groundthink.train.config import TrainRun

METRICS = "metrics.jsonl"


def run_folder(run: TrainRun) -> Path:
    """`run.out`, or runs/MODEL-CORPUS-HASH.

    The hash is of the resolved config, less the vocabulary: that follows from the data.
    """
    if run.out:
        return Path(run.out)
    corpus = re.sub(r"[^a-z0-9]+", "-", Path(run.data.corpus).stem.lower()).strip("-")[:32]
    recipe = replace(run, model=replace(run.model, vocab_size=0))
    return Path("runs") / f"{run.model.name}-{corpus or 'text'}-{configs.digest(recipe)}"


def require_empty(folder: Path) -> None:
    """Raise UserError if the folder already holds a run, or cannot be a folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if not (folder / METRICS).exists():
        return
    if (folder / "checkpoints" / "index.json").exists():
        raise UserError(
            f"{folder} already holds a run; go on with --resume {folder} or choose --out"
        )
    raise UserError(f"{folder} holds a run that saved nothing; delete it or choose another --out")


def rewind(folder: Path, step: int) -> None:
    """Drop the records after `step`, and a last line that was cut short; events stay."""
    path = folder / METRICS
    kept = [r for r in records.read(path) if r["kind"] == "event" or r.get("step", 0) <= step]
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
    write_atomically(path, "".join(lines))
