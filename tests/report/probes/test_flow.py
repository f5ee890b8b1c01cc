"""The section of the flow probe on made-up records."""

from __future__ import annotations

import json

import pytest

from groundthink.report.probes.flow import section

pytestmark = pytest.mark.tiny


def number(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": None}


def layer(i: int, variable: str, **known: float) -> dict:
    controls = {"untrained": number(0.1), "shuffled": number(0.0)}
    known_of = {name: number(value) for name, value in known.items()}
    return {"layer": i, "variable": variable, **known_of, **controls}


PARTS = {"unique_rwkv6": 0.5, "unique_mamba2": 0.1, "redundant": 0.2, "synergistic": 0.2}


def site(i: int, branch: str) -> dict:
    return {
        "layer": i,
        "branch": branch,
        "taus": [1, 2, 4],
        "credit": {"value": [4.0, 2.0, 1.0], "low": [1.0] * 3, "high": [9.0] * 3},
        "half_life": {"value": 2.0 + i, "low": 1.0, "high": 4.0, "longest": 4},
        "value": number(0.1),
        "zeroed": number(0.2 + i),
        "share": number(0.25),
        "write": number(-0.125),
    }


def about(variable: str) -> dict:
    sizes = {"rows": 640, "dims": 32, "texts": 20}
    return {"variable": variable, "entropy": 4.0, "embedding": number(-0.01), **sizes}


def made(*branches: str) -> dict:
    known = {**PARTS, "both": 1.0} if len(branches) > 1 else {branches[0]: 0.5}
    names = ("current", "back", "next")
    return {
        "flow_variable": [about(name) for name in names],
        "flow": [layer(i, name, **known) for name in names for i in (0, 1)],
        "coupling": [site(i, branch) for branch in branches for i in (0, 1)],
    }


def test_titles_state_what_the_records_hold() -> None:
    figures = {figure.id: figure.title for figure in section(made("rwkv6", "mamba2")).figures}
    assert list(figures)[0] == "flow-next"
    known = (
        "Of the next token the states of layer 0 know 1.0 of 4.00 bits, 50\xa0% of it RWKV-6 alone"
    )
    assert figures["flow-next"] == known
    assert figures["flow-credit"].endswith("after 2.5 tokens in RWKV-6 and 2.5 tokens in Mamba-2")
    assert figures["flow-worth"].endswith("layer 1 of RWKV-6: 1.2 nats")
    assert "−0.12 in RWKV-6" in figures["flow-wanted"]


def test_parts_are_stacked_and_controls_stand_beside() -> None:
    part = section(made("rwkv6", "mamba2"))
    names = [trace["name"] for trace in part.figures[0].traces]
    assert names[-2:] == ["untrained model", "shuffled labels"] and len(names) == 6
    worth = next(figure for figure in part.figures if figure.id == "flow-worth")
    assert "50\xa0% to RWKV-6 and 50\xa0% to Mamba-2" in worth.caption
    json.dumps([figure.spec() for figure in part.figures], allow_nan=False)


def test_one_branch_and_no_records() -> None:
    part = section(made("mamba2"))
    assert part.figures[0].title == "Of the next token the states of layer 0 know 0.50 of 4.00 bits"
    assert part.figures[0].traces[0]["name"] == "Mamba-2"
    assert not section({})
