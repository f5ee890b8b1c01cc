"""Documents of a Hugging Face dataset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from groundthink.data.source import Document, Source
from groundthink.errors import UserError

SPLIT_OF = {"train": "train", "validation": "val", "valid": "val", "dev": "val", "test": "test"}
ARTICLE = re.compile(r" = [^=].*[^=] = \n")  # a title line of WikiText


def is_name(spec: str) -> bool:
    """Whether a corpus name has the form of a dataset: owner/name, name:config or both."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?|[\w.-]+:[\w.-]+", spec) is not None


def source(spec: str, text_field: str) -> Source:
    """The rows of a dataset on the Hugging Face Hub; `spec` is its name, `:config` if it has any.

    The dataset's own train, validation and test splits are honoured. The cache is keyed by the
    name alone, so that a corpus once tokenized needs neither the package nor a network.

    Raises:
        UserError: while reading: the package is missing, the dataset cannot be had, or it has no
            column `text_field`.
    """

    def read() -> Iterator[Document]:
        for split, rows in _load(spec).items():
            columns = [name for name, kind in rows.features.items() if _is_text(kind)]
            if text_field not in columns:
                known = ", ".join(columns) or "none"
                raise UserError(
                    f"dataset {spec} has no text column {text_field!r} (it has: {known}); "
                    "set data.text_field"
                )
            batches = rows.select_columns([text_field]).iter(1000)
            texts = documents(text for batch in batches for text in batch[text_field] if text)
            named = SPLIT_OF.get(split, "")
            yield from (Document(f"{spec} {split}", text, named) for text in texts)

    return Source(spec, ["hub", spec, text_field], read)


def documents(rows: Iterable[str]) -> Iterator[str]:
    """One document per row, except that rows which end in a line break are lines of a longer text,
    as in WikiText: they are joined up to the next article title. No row is empty."""
    lines: list[str] = []
    for row in rows:
        is_line = row.endswith("\n")
        if lines and (not is_line or ARTICLE.fullmatch(row)):
            yield "".join(lines)
            lines = []
        if is_line:
            lines.append(row)
        else:
            yield row
    yield "".join(lines)


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("string", "large_string")


def _load(spec: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"there is no file or folder {spec}; to read it as a Hugging Face dataset: "
            "pip install 'groundthink[data]'"
        ) from error
    name, _, config = spec.partition(":")
    try:
        return datasets.load_dataset(name, config or None)
    except Exception as error:  # the hub's errors have no common class, and all are the user's
        reason = " ".join(str(error).split())
        raise UserError(f"cannot load the Hugging Face dataset {spec}: {reason}") from error
