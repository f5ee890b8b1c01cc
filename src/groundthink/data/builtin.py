"""The built-in corpora: documentation and source code of the running Python interpreter.

Both are read as data from the files of its standard library; nothing is imported or executed,
and files that an installation lacks (Debian ships Python in parts) are simply not there.
"""

from __future__ import annotations

import ast
import functools
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from groundthink.data.source import Document, Source
from groundthink.errors import UserError

# Tests are seldom installed; encodings are generated tables; topics are read on their own.
LEFT_OUT = {"test", "tests", "idlelib", "encodings", "pydoc_data", "site-packages", "dist-packages"}
DOCTEST = re.compile(r"^[ \t]*>>>.*(?:\n[ \t]*\S.*)*\n?", re.MULTILINE)
LABEL = 40  # a repeated paragraph shorter than this is a label such as "Example:", and stays
SHORTEST = 100  # characters; what is left of a document below this is no prose


def docs(root: Path | None = None) -> Source:
    """Prose of the running Python: docstrings and help topics, about 2 MB of English."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    read = functools.cache(lambda: list(_prose(root)))
    return Source("python-docs", _identity("docs", root), lambda: iter(read()), "PSF-2.0")


def code(root: Path | None = None) -> Source:
    """Source code of the running Python's standard library, one document per file."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    return Source("python-source", _identity("source", root), lambda: _sources(root), "PSF-2.0")


BUILTIN = {"python-docs": docs, "python-source": code}


def _files(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        found += [Path(folder, name) for name in sorted(names) if name.endswith(".py")]
    if not found:
        raise UserError(f"this Python has no source files in {root}; name a text file instead")
    return found


def _identity(name: str, root: Path) -> list:
    paths = [*_files(root), root / "pydoc_data" / "topics.py"]
    stats = [(path, path.stat()) for path in paths if path.exists()]
    files = [[path.relative_to(root).as_posix(), s.st_size, s.st_mtime_ns] for path, s in stats]
    return [name, platform.python_version(), files]


def _sources(root: Path) -> Iterator[Document]:
    for path in _files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few old modules declare another encoding
        yield Document(path.relative_to(root).as_posix(), text)


def _prose(root: Path) -> Iterator[Document]:
    """Topics and modules with interactive examples and repeated paragraphs taken out.

    Help topics contain one another, so the longest comes first; the repetition would otherwise
    put held-out text into the training split.
    """
    seen: set[str] = set()
    for name, text in [*_topics(root), *_docstrings(root)]:
        kept, dropped = [], 0
        for paragraph in re.split(r"\n\s*\n", DOCTEST.sub("", text)):
            paragraph = paragraph.rstrip()
            if len(paragraph) >= LABEL and paragraph in seen:
                dropped += len(paragraph)
            elif paragraph:
                kept.append(paragraph)
        seen.update(kept)
        prose = "\n\n".join(kept)
        if len(prose) >= max(SHORTEST, dropped):
            yield Document(name, prose)


def _topics(root: Path) -> list[tuple[str, str]]:
    path = root / "pydoc_data" / "topics.py"
    tree = _parse(path) if path.exists() else None
    values = [node.value for node in tree.body if isinstance(node, ast.Assign)] if tree else []
    topics = ast.literal_eval(values[0]) if values else {}
    longest_first = sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(f"topic {name}", text) for name, text in longest_first]


def _docstrings(root: Path) -> Iterator[tuple[str, str]]:
    for path in _files(root):
        if tree := _parse(path):
            yield path.relative_to(root).as_posix(), "\n\n".join(_docstrings_of(tree))


def _docstrings_of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
        for child in node.body:
            yield from _docstrings_of(child)


def _parse(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes in other people's string literals
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return None  # templates and files in a broken encoding
