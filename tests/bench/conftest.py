from __future__ import annotations

from pathlib import Path

import pytest
from toys import small

from groundthink import config as configs
from groundthink.bench.config import BenchModel
from groundthink.data.config import DataConfig


@pytest.fixture
def bench(tmp_path: Path) -> BenchModel:
    """Two rounds of a two-layer model; its text is a page that repeats."""
    configs.save(small("gf"), tmp_path / "small.yaml")
    lines = (f"{n} times {n + 1} is {n * (n + 1)}, says the table.\n" for n in range(99))
    (tmp_path / "page.txt").write_text(8 * "".join(lines), encoding="utf-8")
    return BenchModel(
        model=str(tmp_path / "small.yaml"),
        vocab_size=50,
        batch_size=2,
        seq_len=24,
        repeats=2,
        steps=30,
        device="cpu",
        data=DataConfig(corpus=str(tmp_path / "page.txt"), cache_dir=str(tmp_path / "cache")),
        out=str(tmp_path / "bench.jsonl"),
    )
