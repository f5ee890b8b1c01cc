"""docs/performance.md is what the records say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from groundthink.records import Records

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tables.py"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(tables):
    written = tables.PAGE.read_text(encoding="utf-8")
    assert written == tables.page(tables.load(tables.RECORDS)), "run: python benchmarks/tables.py"


def test_a_target_takes_the_newest_record_and_the_fastest_peer(tables, tmp_path):
    case = "wkv6-64x256x2x64"
    for name, slowest in (("a", 1.0), ("b", 0.5)):
        run = {"device": "GPU", "torch": "2", "triton": "3", "git": name, "config": {}}
        out = Records(tmp_path / f"{name}.jsonl", run)
        for who, ms in (("triton", 0.1), ("fla-chunk", slowest), ("fla-recurrent", 2.0)):
            times = {"value": ms / 0.1, "low": ms / 0.1, "high": ms / 0.1, "n": 6}
            row = {"name": f"{case} {who}", "case": case, "who": who, "ours": who == "triton"}
            out.append("bench", **row, value=ms, n=6, note="", ours_faster=times)
    page = tables.page(tables.load(tmp_path))
    (line,) = (line for line in page.splitlines() if f"{case}, fla" in line)
    quantity, where, must, reached, verdict, commit = (c.strip() for c in line.split("|")[1:-1])
    assert (where, must, reached) == (f"{case}, fla-chunk", "at least 5.00 x", "5.00 x")
    assert (verdict, commit) == ("PASS", "b")
    assert "| SSD over the fastest peer |  | at least 3.00 x |  | not measured |  |" in page


def test_the_record_of_the_gpu_tests_is_on_the_page(tables, tmp_path):
    run = {"device": "GPU", "torch": "2", "triton": "3", "git": "abc"}
    out = Records(tmp_path / "tests.jsonl", run)
    fields = {"value": 7, "n": 8, "tests": {"passed": 7, "failed": 1}, "note": "cut after 9 s"}
    out.append("bench", name="GPU tests", unit="passed", seconds=60.2, **fields)
    errors = {"op": "wkv6", "dtype": "bfloat16", "values": 2e-3, "gradients": 3e-3, "n": 5}
    out.append("bench", name="error of wkv6", unit="relative RMS", value=3e-3, **errors)
    page = tables.page(tables.load(tmp_path))
    assert "At abc: 7 passed, 1 failed in 60 s (`make test-gpu`), cut after 9 s." in page
    assert "| wkv6 | bfloat16 | 2e-03 | 3e-03 | 5 |" in page
