"""The section of the context probe on made-up records."""

from __future__ import annotations

import re

import pytest
from report.conftest import HOSTILE

from groundthink.report.probes.context import section

pytestmark = pytest.mark.tiny
T = 24


def reach(layer: int, branch: str, distance: float) -> dict:
    return {
        "layer": layer,
        "branch": branch,
        "distance": distance,
        "low": distance - 0.5,
        "high": None,
        "texts": 6,
        "distances": [0, 1, 4, 16, 32],
        "beyond": [0.9, 0.7, 0.5, 0.25, 0.0],
        "map": [[1 / (t + 1)] * (t + 1) for t in range(T)],
    }


def passage(branches=("rwkv6", "mamba2"), answer="e") -> dict:
    kl = [0.0] * (T - 2) + [1.0, 3.0]
    return {
        "document": 3,
        "tokens": ["a", "\n", HOSTILE, *["b"] * (T - 3), answer],
        "log_p": -0.6931,
        "gain": 1.5,
        "kl": kl,
        "drop": kl,
        "first_order": {"all": kl, **{branch: [-x for x in kl] for branch in branches}},
        "agreement": 0.5,
        "draws": 4,
    }


def made(*branches: str) -> dict:
    reaches = [reach(i, b, 4.0 * (k + 1) + i) for i in range(6) for k, b in enumerate(branches)]
    return {"reach": reaches, "passage": [passage(branches if len(branches) > 1 else ())]}


def test_titles_state_what_the_records_hold():
    part = section(made("rwkv6", "mamba2"))
    distance, beyond, maps = part.figures
    assert distance.title.endswith("6.5 tokens back in RWKV-6 and 10 tokens back in Mamba-2")
    assert beyond.title.startswith("25\xa0% of what RWKV-6 adds and 25\xa0% of what Mamba-2")
    assert len(maps.traces) == 2 * 4 and len(maps.layout["annotations"]) == 8
    assert (
        "half of the effect lies in the last token, nine tenths in the last 2 tokens" in part.html
    )
    assert "The model gives it 50\xa0%" in part.html


def test_colours_follow_the_effect_and_the_sign():
    html = section(made("rwkv6", "mamba2")).html
    strengths = [int(x) for x in re.findall(r"var\(--accent\) (\d+)%", html)]
    assert strengths == [0] * (T - 2) + [round(55 / 3**0.5), 55]
    assert "var(--faint) 55%" in html, "grey where the gradient speaks against the answer"
    assert html.count("<pre>") == 3


def test_text_of_a_corpus_stays_text():
    html = section(made("rwkv6", "mamba2")).html
    assert "<img" not in html and "&lt;/script&gt;" in html
    assert "⏎\n" in html
    assert "A space: half" in section({"passage": [passage((), " ")]}).html


def test_one_mixer_and_no_records():
    part = section(made("attention"))
    assert "By branch" not in part.html
    assert part.figures[0].title.endswith("6.5 tokens back in attention")
    assert not section({})
