"""Small corpora on disk, and the shared text where a checkout stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GROUNDTHINK_CACHE", str(folder))
    return folder


@pytest.fixture
def shakespeare() -> Path:
    path = SHARED / "shakespeare.txt"
    if not path.exists():
        pytest.skip("needs ../shared/data/shakespeare.txt")
    return path


@pytest.fixture
def stories(tmp_path) -> Path:
    """40 documents of different lengths in one file."""
    path = tmp_path / "stories.txt"
    texts = [f"Story {i}.\n" + f"It goes on, {i} times. " * (i % 7 + 1) for i in range(40)]
    path.write_text("".join(f"{text}\n<|endoftext|>\n" for text in texts), encoding="utf-8")
    return path
