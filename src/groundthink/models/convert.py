"""Released weights into ours: official RWKV-6 `.pth` files and Hugging Face Mamba-2 folders.

The mathematics is the same, so that a conversion only renames. It goes through the weights of our
model one by one and asks for each which weights of the file it is made of.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from groundthink import config as configs
from groundthink.data.tokenizers import Tokenizer, load_tokenizer
from groundthink.errors import UserError
from groundthink.models.build import construct, empty
from groundthink.models.config import ModelConfig
from groundthink.models.pretrained import save

Weights = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

RWKV6_NAMES: Rules = (
    (r"^embed\.", "emb."),
    (r"^embed_norm\.", "blocks.0.ln0."),
    (r"^norm\.", "ln_out."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"\.rwkv6\.", ".att."),
)
MAMBA2_NAMES: Rules = (
    (r"^embed\.", "backbone.embeddings."),
    (r"^norm\.", "backbone.norm_f."),
    (r"^head\.", "lm_head."),
    (r"^blocks\.", "backbone.layers."),
    (r"\.norm1\.", ".norm."),
    (r"\.mamba2\.", ".mixer."),
)
MAMBA2_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "mamba_state_size": "state_size",
    "mamba_head_size": "head_dim",
    "mamba_expand": "expand",
    "mamba_groups": "n_groups",
    "mamba_conv": "conv_kernel",
    "tie_embeddings": "tie_word_embeddings",
}
MAMBA2_FIXED = {
    "model_type": "mamba2",
    "hidden_act": "silu",
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "norm_before_gate": False,
    "time_step_limit": [0.0, math.inf],
}
"""Settings of which we build one value."""


def import_rwkv6(file: str | Path, out: str | Path) -> None:
    """Write an official RWKV-6 `.pth` file as a model folder that `groundthink.load` reads.

    Raises:
        UserError: see `rwkv6_from_pth`.
    """
    _write(out, *rwkv6_from_pth(file), None, file)


def import_mamba2(folder: str | Path, out: str | Path) -> None:
    """Write a Hugging Face Mamba-2 folder, with its tokenizer.json if any, as a model folder.

    Raises:
        UserError: see `mamba2_from_hf`, or the tokenizer cannot be used.
    """
    file = Path(folder) / "tokenizer.json"
    tokenizer = load_tokenizer(file) if file.exists() else None
    _write(out, *mamba2_from_hf(folder), tokenizer, folder)


def _write(
    out: str | Path,
    config: ModelConfig,
    weights: Weights,
    tokenizer: Tokenizer | None,
    source: str | Path,
) -> None:
    model = empty(config, "auto", "cpu")
    model.load_state_dict(weights)
    save(out, model, tokenizer, {"imported": str(source)})


def rwkv6_from_pth(path: str | Path) -> tuple[ModelConfig, Weights]:
    """Config and state dict of an official RWKV-6 (x060) checkpoint.

    Raises:
        UserError: the file cannot be read, or a weight is missing, unknown or of another shape.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises many kinds for what is not a plain .pth
        raise UserError(
            f"{path} is damaged or holds more than weights; download it again"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} does not hold a table of weights; give an RWKV-6 .pth file")
    (vocab, width), (_, head), (hidden, _) = (
        _matrix_shape(found, key, path)
        for key in ("emb.weight", "blocks.0.att.time_faaaa", "blocks.0.ffn.key.weight")
    )
    if hidden % 32:
        raise UserError(f"{path}: the channel mixing is {hidden} wide, not a multiple of 32")
    config = ModelConfig(
        name=Path(path).stem,
        vocab_size=vocab,
        d_model=width,
        n_layers=1
        + max(int(layer) for layer in re.findall(r"^blocks\.(\d+)\.", "\n".join(found), re.M)),
        layout="rwkv6",
        rwkv_head_size=head,
        ffn="rwkv",
        ffn_mult=_ratio(hidden, width),
        norm="layer",
        norm_eps=1e-5,
        embed_norm=True,
        tie_embeddings=False,
        init="published",
    )
    return config, _renamed(config, dict(found), RWKV6_NAMES, path)


def _matrix_shape(found: Mapping[str, Any], key: str, path: str | Path) -> tuple[int, int]:
    if key not in found:
        raise UserError(f"{path} lacks the weight {key}; it is not an RWKV-6 (x060) model")
    if found[key].dim() != 2:
        raise UserError(f"{path}: {key} has shape {list(found[key].shape)}, expected a matrix")
    return found[key].shape


def _ratio(hidden: int, width: int) -> float:
    """The quotient as a float whose product with `width` does not fall below `hidden`."""
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


def mamba2_from_hf(folder: str | Path) -> tuple[ModelConfig, Weights]:
    """Config and state dict of a Hugging Face Mamba-2 folder: config.json and safetensors.

    Raises:
        UserError: a file cannot be read, a setting is not one we build, or a weight is missing,
            unknown or of another shape.
    """
    folder = Path(folder)
    file = folder / "config.json"
    given = _read_json(file)
    for key, value in MAMBA2_FIXED.items():
        if given.get(key, value) != value:
            raise UserError(f"{file}: {key} is {given[key]}; only {value} is supported")
    for key in MAMBA2_FIELDS.values():
        if key not in given:
            raise UserError(f"{file} lacks the key {key}")
    values = {ours: given[theirs] for ours, theirs in MAMBA2_FIELDS.items()} | {
        "name": folder.resolve().name,
        "layout": "mamba2",
        "ffn": "none",
        "norm": "rms",
        "norm_eps": 1e-5,
        "embed_norm": False,
        "init": "published",
    }
    config = configs.from_dict(ModelConfig, values, str(file))
    found = _read_safetensors(folder)
    if config.tie_embeddings and "backbone.embeddings.weight" in found:
        found["lm_head.weight"] = found["backbone.embeddings.weight"]
    return config, _renamed(config, found, MAMBA2_NAMES, folder)


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object, in which {"__float__": "Infinity"} stands for that number."""
    try:
        values = json.loads(
            file.read_text(encoding="utf-8"),
            object_hook=lambda x: float(x["__float__"]) if "__float__" in x else x,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold keys and values")
    return values


def _read_safetensors(folder: Path) -> Weights:
    """All weights of a folder, from one file or from the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.exists():
        files = set(_read_json(index).get("weight_map", {}).values())
    weights: Weights = {}
    for file in sorted(files):
        try:
            weights |= load_file(folder / file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {folder / file}: {error}") from error
    return weights


def _renamed(config: ModelConfig, found: Weights, rules: Rules, where: str | Path) -> Weights:
    """Our state dict out of the weights found: each is there, fits, and is used once."""
    with torch.device("meta"):
        expected = construct(config).state_dict()
    weights = {}
    for name, like in expected.items():
        keys = _sources(name, rules)
        likes = like.unbind() if len(keys) > 1 else (like,)
        parts = [_take(found, *pair, where) for pair in zip(keys, likes, strict=True)]
        weights[name] = torch.stack(parts) if len(parts) > 1 else parts[0]
    if found:
        raise UserError(f"{where} holds the weight {min(found)}, which the model has no place for")
    return weights


def _take(found: Weights, key: str, like: Tensor, where: str | Path) -> Tensor:
    """The weight `key`, shaped as `like` up to dimensions of size one, and no longer in `found`."""
    if key not in found:
        raise UserError(f"{where} lacks the weight {key}")
    weight = found.pop(key)
    if weight.squeeze().shape != like.squeeze().shape:
        shapes = f"{list(weight.shape)}, which does not fit {list(like.shape)}"
        raise UserError(f"{where}: the weight {key} has shape {shapes}")
    return weight.reshape(like.shape)


def _sources(name: str, rules: Rules) -> list[str]:
    """The keys that our weight `name` is made of; the five blends of RWKV-6 are one of ours."""
    for pattern, text in rules:
        name = re.sub(pattern, text, name)
    return [f"{name}_{q}" for q in "wkvrg"] if name.endswith(".time_maa") else [name]
