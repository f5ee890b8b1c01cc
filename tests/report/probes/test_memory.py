"""The section of the memory probe on made-up records."""

from __future__ import annotations

import json

import pytest
from report.conftest import HOSTILE

from groundthink.report.probes.memory import section

pytestmark = pytest.mark.tiny
AT = [0, 1, 2, 4, 8, 16, 32]


def curve(*values: float | None) -> dict:
    return {"value": list(values), "low": list(values), "high": list(values)}


def site(layer: int, branch: str, bits: float, half_life: dict | None) -> dict:
    return {
        "layer": layer,
        "branch": branch,
        "distances": AT,
        "predicted": [[q * 0.9**d for d in AT] for q in (0.5, 0.8, 1.0)],
        "predicted_half_life": [10.0, 20.0, 30.0],
        "bits": curve(*[bits] * 7),
        "untrained": [0.1] * 7,
        "most_bits": 2.0,
        "half_life": half_life,
        "kept_half_life": half_life,
        "write": {"value": 1.5 + layer, "low": 1.0, "high": 3.5},
    }


def read(layer: int | None, part: str, share: float | None) -> dict:
    return {"layer": layer, "part": part, "distances": [1, 4, 16], "share": curve(*[share] * 3)}


def made(*branches: str, share: float | None = 0.25) -> dict:
    half = {"value": 6.0, "low": 4.0, "high": 32.0, "longest": 32}
    recall = {
        "distances": AT,
        "gain": curve(0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0),
        "untrained": [0.0] * 7,
        "choice": curve(*[0.5] * 7),
        "chance": 0.25,
        "half_life": half,
        "cues": [HOSTILE],
        "values": ["a"],
        "texts": 8,
    }
    sites = [site(i, b, 0.5 * i + 0.25, half if i else None) for b in branches for i in range(2)]
    reads = [read(i, b, share) for b in branches or ("attention",) for i in (0, 1, None)]
    return {"recall": [recall], "memory": sites, "read": [*reads, read(None, "all", 1.0)]}


def test_titles_state_what_the_records_hold() -> None:
    figures = {figure.id: figure.title for figure in section(made("rwkv6", "mamba2")).figures}
    assert figures["memory-map"] == (
        "16 tokens on, of 2.0 bits a probe finds 0.75 in layer 1 of RWKV-6 "
        "and 0.75 in layer 1 of Mamba-2"
    )
    assert figures["memory-curves-rwkv6"].endswith("half for 20 tokens; a probe finds half for 6.0")
    assert figures["memory-recall"].endswith("the told value gains 0.050 nats at its cue")
    assert figures["memory-read"].endswith("25\u00a0% from RWKV-6 and 25\u00a0% from Mamba-2")
    assert "2.0 in RWKV-6 and 2.0 in Mamba-2 times" in figures["memory-write"]


def test_half_lives_beyond_the_data_are_open_and_unknown_ones_empty() -> None:
    html = section(made("mamba2")).html
    assert '6.0 <span class="aside">4.0 to &gt; 32</span>' in html
    assert "–</td>" in html


def test_text_of_a_corpus_stays_text() -> None:
    part = section(made("rwkv6"))
    assert "<img" not in part.html
    json.dumps([figure.spec() for figure in part.figures], allow_nan=False)


def test_attention_alone_nothing_recalled_and_no_records() -> None:
    ids = [figure.id for figure in section(made()).figures]
    assert ids == ["memory-recall", "memory-read"]
    assert "memory-read" not in [f.id for f in section(made("rwkv6", share=None)).figures]
    assert not section({})
