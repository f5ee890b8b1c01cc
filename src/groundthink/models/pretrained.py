"""Model folders: weights, config, tokenizer and meta as safetensors, YAML and JSON: data only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from groundthink import config as configs
from groundthink.data.tokenizers import Tokenizer, load_tokenizer
from groundthink.errors import UserError
from groundthink.models.base import LanguageModel
from groundthink.models.build import empty
from groundthink.models.config import ModelConfig

WEIGHTS = "model.safetensors"


def save(
    folder: str | Path, model: LanguageModel, tokenizer: Tokenizer | None, meta: dict[str, Any]
) -> None:
    """Write a model folder; tied weights are stored once."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: x.detach().contiguous().cpu() for name, x in stored_weights(model).items()}
    save_file(weights, folder / WEIGHTS)
    configs.save(model.config, folder / "config.yaml")
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    meta = {**meta, "sha256": {WEIGHTS: sha256(folder / WEIGHTS)}}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def stored_weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """The state dict without the second name of a tied head."""
    weights = model.state_dict()
    if model.config.tie_embeddings:
        del weights["head.weight"]
    return weights


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: str = "auto",
    which: str = "last",
) -> tuple[LanguageModel, Tokenizer | None]:
    """The model and tokenizer of a run, a checkpoint folder or an imported model.

    Args:
        path: runs/NAME or a model folder.
        which: "last" or "best" checkpoint of a run.

    Returns:
        The model in eval mode, and its tokenizer (None where the folder has none).

    Raises:
        UserError: nothing to load there, or a file is corrupt or does not fit (it is named).
    """
    folder = model_folder(path, which)
    config = configs.load(ModelConfig, folder / "config.yaml")
    model = empty(config, backend, device)
    load_weights(model, folder)
    tokenizer_file = folder / "tokenizer.json"
    tokenizer = load_tokenizer(tokenizer_file) if tokenizer_file.exists() else None
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokenizer_file} has {tokenizer.vocab_size} ids but the model in {folder} has "
            f"{config.vocab_size}; this tokenizer belongs to another checkpoint"
        )
    return model.eval(), tokenizer


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Fill a model from a model folder, every weight exactly once.

    Raises:
        UserError: the file is missing, corrupt, or of another model.
    """
    path = folder / WEIGHTS
    meta = read_meta(folder)
    try:
        if meta["sha256"][WEIGHTS] != sha256(path):
            raise ValueError("its contents have changed since it was written")
        weights = load_file(path)
    except Exception as error:
        raise UserError(
            f"{path} is missing or damaged ({error}); "
            f"use another checkpoint of the run, see {folder.parent}"
        ) from error
    expected = stored_weights(model)
    wrong = sorted(
        name
        for name in expected.keys() | weights.keys()
        if name not in weights
        or name not in expected
        or weights[name].shape != expected[name].shape
    )
    if wrong:
        raise UserError(
            f"{path} is of another model: {len(wrong)} weights do not fit, first {wrong[0]}"
        )
    model.load_state_dict(weights, strict=False)


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a model folder."""
    try:
        return json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'meta.json'} is missing or damaged ({error})") from error


def model_folder(path: str | Path, which: str = "last") -> Path:
    """The model folder that a run or checkpoint path means.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    index = path / "checkpoints" / "index.json"
    if index.exists():
        try:
            return index.parent / json.loads(index.read_text(encoding="utf-8"))[which]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{index} is damaged; name a checkpoint folder inside {index.parent}"
            ) from error
    if (path / "meta.json").exists():
        return path
    reason = (
        "has no checkpoint yet"
        if (path / "config.yaml").exists()
        else "is not a run or a model folder"
    )
    raise UserError(f"{path} {reason}; train one with: groundthink train")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
