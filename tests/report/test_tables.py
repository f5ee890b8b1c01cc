from __future__ import annotations

import re

import pytest

from groundthink.report import tables


def _cells(html: str) -> list[str]:
    return [re.sub("<[^>]+>", "", cell).strip() for cell in re.findall("<td.*?</td>", html)]


@pytest.mark.tiny
def test_the_budget_adds_up() -> None:
    counts = {"total": 100, "non_embedding": 90, "rwkv6": 40, "mamba2": 30, "ffn": 15}
    cells = _cells(tables.budget(counts))
    assert cells[0::3] == ["RWKV-6", "Mamba-2", "channel mixing", "embeddings", "rest", "total"]
    assert cells[1::3] == ["40", "30", "15", "10", "5", "100"]
