"""`groundthink data inspect`: true numbers, visible boundaries, lines that fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from groundthink.data.config import DataConfig, DataInspect
from groundthink.data.inspect import END, RESET, inspect


@pytest.mark.tiny
@pytest.mark.parametrize("order", ["lanes", "windows"])
def test_sizes_and_windows_with_boundaries(stories, order):
    config = DataInspect(
        data=DataConfig(corpus=str(stories), order=order, val_fraction=0.2), seq_len=100, windows=2
    )
    text = inspect(config, log=lambda line: None)
    assert all(len(line) <= 100 for line in text.split("\n") if "/" not in line)
    for part in ("documents   40", "char", "by whole documents", "train", "val", "row 2 of 2"):
        assert part in text
    shown = text.split("row 1 of 2")[1]
    assert RESET in shown and "It goes on" in shown
    assert shown.count(END) >= 1 and f"{END}\n  {RESET}Story" in shown


@pytest.mark.tiny
def test_control_characters_are_spelt_out(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_text("a\x1b[31mred\tand\x07so on\n" * 3)  # shorter than the window asked for
    config = DataInspect(data=DataConfig(corpus=str(path)), windows=1, seq_len=500)
    text = inspect(config)
    assert "\\x1b[31mred\\tand\\x07" in text and "\x1b" not in text


def test_the_config_needs_no_torch():
    code = "import sys, groundthink.data.inspect; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
