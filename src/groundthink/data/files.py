"""Documents in text files: plain or compressed, one or many, .txt, .md or .jsonl."""

from __future__ import annotations

import glob
import gzip
import io
import json
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from groundthink.data.source import Document, Source
from groundthink.errors import UserError

TEXT = (".txt", ".md", ".jsonl")
PACKED = (".gz", ".xz", ".zst")
SUFFIXES = tuple(text + packed for text in TEXT for packed in ("", *PACKED))
SPLIT_WORD = re.compile(r"(?<![a-z])(train|val|valid|validation|dev|test)(?:ing)?(?![a-z])")
SPLIT_OF = {"train": "train", "test": "test"}  # the other words all mean val


def is_path(spec: str) -> bool:
    """Whether a corpus name can only mean a file, a folder or a glob."""
    return spec != "" and (
        glob.has_magic(spec)
        or spec.startswith((".", "/", "~"))
        or "\\" in spec
        or spec.lower().endswith(SUFFIXES)
        or Path(spec).expanduser().exists()
    )


def source(spec: str, separator: str, text_field: str) -> Source:
    """The documents of a file, of a folder (its SUFFIXES files, recursively) or of a glob.

    A line that is `separator` ends a document; an empty `separator` never does. In .jsonl
    every line is an object whose `text_field` is a document. Where a file's path, below the
    folder that all share, holds the word train, val (valid, validation, dev) or test, its
    documents belong to that split.

    Raises:
        UserError: nothing found; and while reading: a file is binary, not UTF-8, damaged, or a
            .jsonl line has no text; a package to decompress it is missing.
    """
    paths = find(spec)
    shared = os.path.commonpath([path.parent for path in paths])
    stats = [path.stat() for path in paths]
    files = [[str(p), s.st_size, s.st_mtime_ns] for p, s in zip(paths, stats, strict=True)]

    def read() -> Iterator[Document]:
        for path in paths:
            name = path.relative_to(shared).as_posix()
            split = split_of(name)
            jsonl = any(path.name.lower().endswith(".jsonl" + end) for end in ("", *PACKED))
            texts = _jsonl(path, text_field) if jsonl else _plain(path, separator)
            yield from (Document(name, text, split) for text in texts)

    return Source(spec, ["files", files, separator, text_field], read)


def find(spec: str) -> list[Path]:
    """Absolute paths of the files that a corpus path names, sorted."""
    path = Path(spec).expanduser().resolve()
    if path.is_file():
        return [path]
    if path.is_dir():
        below = [p.relative_to(path) for p in path.rglob("*") if p.is_file()]
        found = [
            path / p
            for p in below
            if p.name.lower().endswith(SUFFIXES) and not any(part[0] == "." for part in p.parts)
        ]
        if not found:
            raise UserError(f"the folder {spec} holds no text files ({', '.join(SUFFIXES)})")
        return sorted(found)
    if glob.has_magic(spec):
        matches = glob.glob(os.path.expanduser(spec), recursive=True)
        found = [Path(match).resolve() for match in matches if os.path.isfile(match)]
        if not found:
            raise UserError(f"no file matches {spec}")
        return sorted(found)
    raise UserError(f"there is no file or folder {spec}")


def split_of(name: str) -> str:
    """The split that a file's path names, or an empty string."""
    match = SPLIT_WORD.search(name.lower())
    return SPLIT_OF.get(match[1], "val") if match else ""


def _plain(path: Path, separator: str) -> Iterator[str]:
    """Texts between separator lines, each without the line break before its separator."""
    lines: list[str] = []
    for line in _lines(path):
        if separator and line.rstrip("\n") == separator:
            yield "".join(lines).removesuffix("\n")
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error}") from error
        text = row.get(field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            known = ", ".join(row) if isinstance(row, dict) else "no fields"
            raise UserError(
                f"{path}: line {number} has no text in the field {field!r} (it has: {known}); "
                "set data.text_field"
            )
        yield text.encode("utf-8", "replace").decode()  # escapes may spell half a character


def _lines(path: Path) -> Iterator[str]:
    """Lines with \\n ends (\\r\\n becomes \\n), without a byte-order mark."""
    offset = 0
    try:
        with _open(path) as file:
            for raw in file:
                if (zero := raw.find(b"\0")) >= 0:
                    raise UserError(f"{path} is binary, not text (NUL at byte {offset + zero})")
                line = raw.decode("utf-8").replace("\r\n", "\n")
                yield line if offset else line.removeprefix("\ufeff")
                offset += len(raw)
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(f"{path} is not UTF-8 text (byte {at}); convert it to UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _open(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return io.BufferedReader(gzip.open(path))  # pyright: ignore[reportArgumentType]
        case ".xz":
            return io.BufferedReader(lzma.open(path))  # pyright: ignore[reportArgumentType]
        case ".zst":
            return _open_zst(path)
    return path.open("rb")


def _open_zst(path: Path) -> IO[bytes]:
    """Decompress to a temporary file: zstandard's own reader ends a truncated file silently."""
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{path} needs a package to decompress: pip install zstandard") from error
    text = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        with path.open("rb") as file:
            while block := frame.unused_data or file.read(1 << 20):
                frame = zstandard.ZstdDecompressor().decompressobj() if frame.eof else frame
                text.write(frame.decompress(block))
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if not frame.eof:
        raise EOFError("it ends in the middle of a compressed frame")
    text.seek(0)
    return text
