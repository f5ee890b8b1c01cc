"""Frozen dataclasses <-> YAML <-> command line. The only file that imports the parser.

A config is a tree of frozen keyword-only dataclasses whose leaves are scalars, strings, tuples
or Literals. Defaults live in the dataclasses alone; the string under a field is its help.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from groundthink.errors import UserError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config: what YAML and JSON hold."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config", at: str = "") -> T:
    """Build `cls` from a plain nested mapping; missing keys take their defaults.

    Raises:
        UserError: an unknown key (with near names) or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for key, value in values.items():
        if key not in hints:
            raise _unknown_key(where, at + key, [at + name for name in hints])
        kwargs[key] = _coerce(hints[key], value, where, at + key)
    return cls(**kwargs)


def _coerce(kind: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: {name} must hold keys of its own, not {value!r}")
        return from_dict(typing.cast(type, kind), value, where, name + ".")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(args[0], item, where, name) for item in value)
    if origin is Literal and value in args:
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif (
        isinstance(kind, type)
        and isinstance(value, kind)
        and (kind is bool or not isinstance(value, bool))
    ):
        return value
    expected = (
        f"one of {', '.join(map(str, args))}"
        if origin is Literal
        else getattr(kind, "__name__", str(kind))
    )
    raise UserError(f"{where}: {name} must be {expected}, not {value!r}")


def load(cls: type[T], path: str | Path) -> T:
    """Read a config from a YAML file (see `from_dict`)."""
    return from_dict(cls, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: the file is missing or is not a mapping in YAML.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"the config {path} must hold keys and values")
    return values


def save(config: Any, path: str | Path) -> None:
    """Write a config, every field resolved, as YAML."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def digest(config: Any) -> str:
    """Twelve hex digits that name the resolved values of a config."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def leaves(cls: type, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every leaf of a config class."""
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type, kind), f"{at}{name}.")
        else:
            yield at + name, kind


def keys(cls: type) -> list[str]:
    """Dotted names of every leaf of a config class."""
    return [name for name, _ in leaves(cls)]


def _spelled(cls: type, argv: Sequence[str]) -> list[str]:
    """The words as the parser takes them: --only G1,G2 is --only=[G1,G2], --save-state is
    --save_state, and a switch alone is true."""
    kinds = {f"--{name}": typing.get_origin(kind) or kind for name, kind in leaves(cls)}
    out, words = [], list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            out.append(word)
            continue
        flag = "--" + flag[2:].replace("-", "_")
        if kinds.get(flag) is tuple:
            value = value if equals else "".join(words[:1])
            words = words if equals else words[1:]
            out.append(f"{flag}={value}" if value.startswith("[") else f"{flag}=[{value}]")
        elif kinds.get(flag) is bool and not equals and words[:1] not in (["true"], ["false"]):
            out.append(f"{flag}=true")
        else:
            out.append(flag + equals + value)
    return out


def flatten(values: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested mapping -> dotted keys."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{at}{key}.") if isinstance(value, Mapping) else {at + key: value}
    return flat


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    about: str,
    usage: str = "",
    files: Sequence[Path] = (),
    base: Mapping[str, Any] | None = None,
) -> T:
    """A config from the command line: flags > YAML `files` (left to right) > `base` > defaults.

    Args:
        usage: what stands between the program and its options in the usage line.
        files: YAML files.
        base: nested values that replace defaults, for example what a preset name stands for.

    Raises:
        UserError: unknown flag or key (with near names) or a value of the wrong type.
    """
    import argparse

    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog, description=about, usage=f"{prog} {usage} [options]", exit_on_error=False
    )
    parser.add_class_arguments(cls)
    layers = dict(base or {})
    for file in files:
        values = read_yaml(file)
        from_dict(cls, values, str(file))
        layers = merge(layers, values)
    words = _spelled(cls, argv)
    flags = [word.split("=")[0] for word in words if word.startswith("--") and word != "--help"]
    for flag in flags:
        if flag[2:] not in set(keys(cls)):
            raise _unknown_key(prog, flag, [f"--{key}" for key in keys(cls)])
    parser.set_defaults(flatten(layers))
    try:
        parsed = parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UserError(f"{prog}: {' '.join(str(error).split())}") from error
    return from_dict(cls, parsed.as_dict(), prog)


def take(argv: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    """The values of every `flag VALUE` or `flag=VALUE`, and the words without them.

    Raises:
        UserError: the flag stands last, without a value.
    """
    values, rest, words = [], [], iter(argv)
    for word in words:
        if word == flag:
            value = next(words, None)
            if value is None:
                raise UserError(f"{flag} needs a value")
            values.append(value)
        elif word.startswith(flag + "="):
            values.append(word.removeprefix(flag + "="))
        else:
            rest.append(word)
    return values, rest


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over one another; `high` wins leaf by leaf."""
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        out[key] = (
            merge(below, value)
            if isinstance(value, Mapping) and isinstance(below, Mapping)
            else value
        )
    return out


def _unknown_key(where: str, name: str, known: Sequence[str]) -> UserError:
    by_leaf = {known_name.rsplit(".", 1)[-1].lstrip("-"): known_name for known_name in known}
    near = difflib.get_close_matches(name, known, n=2) or [
        by_leaf[leaf]
        for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1].lstrip("-"), by_leaf, n=2)
    ]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UserError(f"{where}: unknown option {name}; {hint}")
