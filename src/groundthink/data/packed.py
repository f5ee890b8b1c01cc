"""Tokens on disk: one memory-mapped shard per split and a manifest that vouches for them.

train.bin  val.bin  test.bin    token ids, uint16 or uint32, little-endian, no header
train.idx  ...                  int64 index after the last token of every document
tokenizer.json                  what made the ids
manifest.json                   dtype, counts, sizes and sha256 of the files, source, licence
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from groundthink.errors import UserError

FORMAT = 1  # raise it whenever the same source and settings come to give other tokens
HASHED = 1 << 24  # bytes; larger files have their size checked on opening, not their sha256


@dataclass(frozen=True, eq=False)
class Packed:
    """One split: documents one after another, each ended by eos.

    Attributes:
        tokens: ids [N], memory-mapped.
        doc_ends: int64 [D], rising, the last is N. In the track split a lane's end is one too.
        bytes: UTF-8 bytes of text that the tokens stand for.
        lanes: number of equal lanes the tokens are laid out in; 0 if they may be cut anywhere.
    """

    tokens: np.ndarray
    doc_ends: np.ndarray
    bytes: int = 0
    lanes: int = 0


class ShardWriter:
    """Writes the tokens of one split as they come."""

    def __init__(self, path: Path, dtype: str, token_bytes: np.ndarray):
        self.path = path
        self.dtype, self.token_bytes = dtype, token_bytes
        self.file = self.path.with_suffix(".bin").open("wb")
        self.tokens = self.bytes = 0
        self.ends: list[int] = []

    def add(self, ids: np.ndarray) -> None:
        """Append tokens to the current document."""
        self.file.write(ids.astype(self.dtype).tobytes())
        self.tokens += len(ids)
        self.bytes += int(self.token_bytes[ids].sum())

    def end(self) -> None:
        """End the current document here."""
        self.ends.append(self.tokens)

    def close(self) -> dict[str, int]:
        """Finish both files; the counts for the manifest."""
        self.file.close()
        np.array(self.ends, dtype="<i8").tofile(self.path.with_suffix(".idx"))
        return {"tokens": self.tokens, "documents": len(self.ends), "bytes": self.bytes}


def lay_in_tracks(
    text: Packed, lanes: int, val_fraction: float, train: ShardWriter, val: ShardWriter
) -> None:
    """The study's split: cut a text into `lanes` equal tracks and hold out the tail of each one.

    The last N mod lanes tokens are left out; both writers get their parts in order of tracks.
    """
    length = len(text.tokens) // lanes
    boundary = int(length * (1 - val_fraction))
    for writer, first, last in ((train, 0, boundary), (val, boundary, length)):
        for start in range(first, lanes * length, length):
            end = start + last - first
            inside = text.doc_ends[(text.doc_ends > start) & (text.doc_ends < end)]
            writer.ends += (inside - start + writer.tokens).tolist()
            writer.add(text.tokens[start:end])
            writer.end()


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, else vanishes.

    Raises:
        UserError: nothing can be written there (no permission, disk full).
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as scratch:
            work = Path(scratch, "data")
            work.mkdir()
            yield work
            try:
                work.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    except OSError as error:
        raise UserError(f"cannot write tokens to {folder}: {error}; set data.cache_dir") from error


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json: `manifest` and what is in the folder."""
    files = {path.name: _stamp(path) for path in sorted(folder.iterdir())}
    text = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def _stamp(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards, after a check that its files are whole.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, "cannot be read") from error
    for name, stamp in files:
        file = folder / name
        size = file.stat().st_size if file.exists() else None
        if size is None:
            raise _damaged(file, "is missing")
        if size != stamp["bytes"]:
            raise _damaged(file, f"has {size} bytes instead of {stamp['bytes']}")
        if size <= HASHED and _stamp(file) != stamp:
            raise _damaged(file, "has been altered: its sha256 is not the manifest's")
    return manifest


def _damaged(file: Path, what: str) -> UserError:
    return UserError(f"{file} {what}; delete the folder {file.parent} and it is built again")


def open_splits(folder: Path, manifest: dict[str, Any]) -> dict[str, Packed]:
    """The splits of a folder of shards; empty ones are left out."""
    return {
        split: open_split(folder / split, manifest["dtype"], counts["bytes"], manifest["lanes"])
        for split, counts in manifest["splits"].items()
        if counts["tokens"]
    }


def open_split(path: Path, dtype: str, size: int = 0, lanes: int = 0) -> Packed:
    """Map the shard `path`.bin and .idx; `size` and `lanes` as in Packed."""
    tokens = np.memmap(path.with_suffix(".bin"), dtype=dtype, mode="r")
    return Packed(tokens, np.fromfile(path.with_suffix(".idx"), dtype="<i8"), size, lanes)


def digest_of(manifest: dict[str, Any]) -> str:
    """Twelve hex digits that name the tokens themselves, wherever they were made."""
    content = [manifest["dtype"], manifest["lanes"], sorted(manifest["files"].items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def cache_folder(chosen: str) -> Path:
    """Where shards are kept: the folder given, $GROUNDTHINK_CACHE or the user's cache."""
    if chosen:
        return Path(chosen).expanduser()
    if own := os.environ.get("GROUNDTHINK_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundthink"
