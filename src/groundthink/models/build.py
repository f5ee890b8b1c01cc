"""From a name, a YAML file or a config to a model with weights."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundthink import config as configs
from groundthink.errors import unknown
from groundthink.models.config import ModelConfig
from groundthink.models.names import ALIASES, names, resolve

if TYPE_CHECKING:
    import torch

    from groundthink.models.base import LanguageModel


def presets() -> dict[str, Path]:
    """Run presets shipped with the package, by name."""
    folder = Path(str(files("groundthink.models") / "presets"))
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return found | {"medium_50k": found["8m_50k"]}  # the study's second name of that run


def preset_file(name: str) -> Path:
    """The YAML file a user names: a path, or a shipped preset with or without .yaml.

    Raises:
        UserError: neither exists (with near names).
    """
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml").lower()
    if stem not in presets():
        raise unknown("preset", name, presets())
    return presets()[stem]


def model_config(values: dict[str, Any], where: str) -> ModelConfig:
    """A config from plain values laid over what their `name` stands for."""
    base = configs.to_dict(resolve(values["name"])) if "name" in values else {}
    return configs.from_dict(ModelConfig, base | values, where)


def as_config(spec: str | Path | ModelConfig) -> ModelConfig:
    """The ModelConfig of a VARIANT-SIZE name, preset name, YAML path or config.

    Raises:
        UserError: nothing has that name (with near names), or the YAML does not fit.
    """
    if isinstance(spec, ModelConfig):
        return spec
    name = str(spec)
    if name.lower() in ALIASES or name.lower() in names():
        return resolve(name)
    if name.endswith((".yaml", ".yml")) or name.lower() in presets():
        path = preset_file(name)
        values = configs.read_yaml(path)
        return model_config(values.get("model", values), str(path))
    return resolve(name)


def empty(config: ModelConfig, backend: str, device: str | torch.device) -> LanguageModel:
    """The module of a config with unset weights on a device."""
    import torch

    with torch.device("meta"):
        model = construct(config, backend)
    model.to_empty(device=device)
    model.tie_weights()
    return model


def construct(config: ModelConfig, backend: str = "auto") -> LanguageModel:
    """The module of a config, to be built under torch.device("meta"): its weights are not set."""
    from groundthink.models.gpt2 import GPT2
    from groundthink.models.hybrid import HybridLM

    return GPT2(config) if config.layout == "gpt2" else HybridLM(config, backend)


def build(
    spec: str | Path | ModelConfig,
    *,
    vocab_size: int | None = None,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LanguageModel:
    """A model with initialised weights.

    Args:
        spec: VARIANT-SIZE name ("gf-mh-5m"), preset name, YAML path or ModelConfig.
        vocab_size: number of token ids, in place of the config's.
        backend: backend of the recurrences.
        device: where the weights live.
        seed: seed of the weights.

    Raises:
        UserError: unknown name, or sizes that do not fit.
    """
    from groundthink.models.init import init_weights

    config = as_config(spec)
    if vocab_size is not None:
        config = replace(config, vocab_size=vocab_size)
    model = empty(config, backend, device)
    init_weights(model, seed)
    return model
