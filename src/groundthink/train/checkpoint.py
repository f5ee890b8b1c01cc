"""Checkpoints: a model folder with train.pt beside the weights, written whole or not at all.

``checkpoints/step-00000500/`` appears by one rename when every byte of it is on disk, and
``checkpoints/index.json`` {"last", "best"} names it by another. Kept are the last, the best and the
one before the last. Nothing is unpickled on reading.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from groundthink.data.tokenizers import Tokenizer
from groundthink.errors import UserError
from groundthink.models import pretrained
from groundthink.models.base import LanguageModel

TRAIN = "train.pt"


def save(
    root: Path,
    step: int,
    model: LanguageModel,
    tokenizer: Tokenizer,
    meta: dict[str, Any],
    training: dict[str, Any],
    best: str | None,
) -> Path:
    """Write the checkpoint of `step` into the folder `root`; the last one stays until it is whole.

    Args:
        training: what train.pt holds: tensors and plain values only.
        best: name of the checkpoint with the lowest validation loss; None if it is this one.

    Raises:
        UserError: it cannot be written, for example because the disk is full.
    """
    path = root / name(step)
    part = root / f".{path.name}"
    before = read_index(root)
    try:
        shutil.rmtree(part, ignore_errors=True)
        pretrained.save(part, model, tokenizer, meta)
        with (part / TRAIN).open("wb") as file:
            torch.save(training, file)
        _seal(part)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
        write_index(root, path.name, best or path.name)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(_cannot_write(root, before.get("last"), error)) from error
    keep = {path.name, best, before.get("last")}
    for folder in root.glob("*step-*"):
        if folder.name not in keep:
            shutil.rmtree(folder)
    return path


def name(step: int) -> str:
    """Folder name of a step."""
    return f"step-{step:08d}"


def read_index(root: Path) -> dict[str, str]:
    """{"last", "best"} of a checkpoints folder; empty if there is none yet."""
    path = root / "index.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_index(root: Path, last: str, best: str) -> None:
    """Make `last` and `best` the checkpoints that a run's folder stands for."""
    write_atomically(root / "index.json", json.dumps({"last": last, "best": best}))


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by its new text in one step, on disk when this returns."""
    part = path.with_name(f".{path.name}")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync(path.parent)


def find(path: str | Path) -> Path:
    """The checkpoint folder that ``--resume PATH`` means: the last one of a run, or PATH itself.

    Raises:
        UserError: there is none.
    """
    folder = pretrained.model_folder(path)
    if not (folder / TRAIN).exists() and folder.parent.name != "checkpoints":
        raise UserError(
            f"{path} is a model without training state; resume a folder of runs/ instead"
        )
    return folder


def restore(folder: Path, model: LanguageModel, identity: dict[str, Any]) -> dict[str, Any]:
    """Load the weights of a checkpoint into `model`; returns what its train.pt holds.

    Args:
        identity: what the run must share with the checkpoint, by name.

    Raises:
        UserError: a file is missing or damaged (the message names it and the checkpoint to use
            instead), or the checkpoint is of another run (it names the first difference).
    """
    damaged = damage(folder)
    if damaged:
        others = sorted(folder.parent.glob("step-*"), reverse=True)
        whole = next((other for other in others if other != folder and not damage(other)), None)
        use = f"use the one before: groundthink train --resume {whole}" if whole else "train again"
        raise UserError(f"{damaged} is missing or damaged; {use}")
    stored = _read_training(folder / TRAIN)
    for key, now in identity.items():
        if (then := stored["identity"].get(key)) != now:
            raise UserError(
                f"cannot resume {folder}: {key} was {then} and is {now} now; "
                "put it back or start a new run"
            )
    pretrained.load_weights(model, folder)
    return stored


def _read_training(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path} holds more than tensors and plain values; not read") from error


def damage(folder: Path) -> Path | None:
    """The first file of a checkpoint that is not what was written, or None."""
    meta = folder / "meta.json"
    try:
        sums = json.loads(meta.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError):
        return meta
    for file, expected in {TRAIN: None, **sums}.items():
        path = folder / file
        if not path.exists() or pretrained.sha256(path) != expected:
            return path
    return None


def seed_rng(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of every global random generator, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],  # pyright: ignore
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every global random generator back to what `rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _seal(folder: Path) -> None:
    """Note the sha256 of every file in meta.json and bring the folder to disk."""
    meta = pretrained.read_meta(folder)
    files = [path for path in sorted(folder.iterdir()) if path.name != "meta.json"]
    meta["sha256"] = {path.name: pretrained.sha256(path) for path in files}
    write_atomically(folder / "meta.json", json.dumps(meta, indent=1))
    for path in [*files, folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(root: Path, last: str | None, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    left = f"{root / last} is whole" if last else "nothing was saved before"
    reason = " ".join(reason.split())
    return f"cannot write a checkpoint to {root}: {reason}; {left}; free space and resume"
