"""The section of the states probe on made-up records."""

from __future__ import annotations

import json
import math

import pytest

from groundthink.report.probes.state_maps import left
from groundthink.report.probes.states import section

pytestmark = pytest.mark.tiny
STOPS = [64, 128, 192]


def at(layer: int, branch: str, **fields) -> dict:
    return {"layer": layer, "branch": branch, **fields}


def interval(name: str, value: float) -> dict:
    return {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}


def made(*branches: str, rise: float = 0.2) -> dict:
    places = [(i, branch) for branch in branches for i in range(2)]
    curves = {
        **{"rms": [1.0, 2.0, 3.0], "turn": [None, 0.5, 0.9], "shift": [None, 1.0, 0.5]},
        **{"rank": [0.1, 0.2, 0.25], "entropy": [0.1, 0.2, 0.3]},
    }
    numbers = {"written": 0.1, "forgotten": 0.05}
    bounds = {"low": [0.0, 0.1, 0.2], "high": [0.1, 0.2, 0.3]}
    grown = {"tokens": [32, 64, 256], "rms": [1.0, 2.0, 4.0]}
    return {
        "along": [at(*p, tokens=STOPS, **curves) for p in places],
        "tau": [at(i, b, tokens=[4.0, 256.0 * (i + 1)]) for i, b in places],
        "state": [
            at(i, b, tau=4.0 + i, **numbers, **interval("apart", 0.5 - 0.1 * i)) for i, b in places
        ],
        "growth": [at(i, b, **grown, exponent=0.1 * i) for i, b in places],
        "length": [
            {"start": 64, "tokens": [32, 64, 256], "loss": [2.0, 1.9, 1.8], **bounds}
            | interval("rise", rise)
        ],
        "path": [
            at(*p, tokens=STOPS, x=[0.0, 1.0, 2.0], y=[0.0, 1.0, 0.0], explained=0.8)
            for p in places
        ],
        "superposition": [at(i, b, **interval("residual", 0.1 * i)) for i, b in places],
        "edits": [
            {"branch": b, "edits": [0, 1, 2], "distance": [0.0, 0.1, 0.2], "rho": 1.0, **bounds}
            for b in branches
        ],
        "between": [{"alpha": [0.0, 0.5, 1.0], "extra": [0.2, 0.15, 0.0], **bounds}],
    }


def test_titles_state_what_the_records_hold() -> None:
    figures = {f.id: f.title for f in section(made("rwkv6", "mamba2")).figures}
    assert len(figures) == 13
    assert figures["states-along"].endswith("a cosine of 0.90 in RWKV-6 and 0.90 in Mamba-2")
    assert "30\u00a0% (layer 1) in RWKV-6" in figures["states-retention"]
    assert figures["states-inputs"].startswith("RWKV-6 of layer 1 depends least on the text: 40")
    assert figures["states-growth"] == "RWKV-6 of layer 1 grows fastest, as t to the 0.10"
    assert figures["states-length"].endswith("costs 0.20 nats")
    assert figures["states-superposition"].startswith("States add up but for 0") is False
    assert figures["states-mixtures"] == "Between two states lies a barrier of 0.050 nats"


def test_what_is_within_its_interval_is_not_claimed() -> None:
    figures = {f.id: f.title for f in section(made("mamba2", rise=0.001)).figures}
    assert "neither costs nor saves" in figures["states-length"]


def test_every_figure_is_plain_json_with_one_branch_or_two() -> None:
    for branches in (("rwkv6",), ("mamba2",), ("rwkv6", "mamba2")):
        for figure in section(made(*branches)).figures:
            json.dumps(figure.spec(), allow_nan=False)
            assert figure.title and figure.caption.endswith(".")


def test_what_is_missing_is_said() -> None:
    assert section({"finding": []}).notes == ["This model has no recurrent state."]
    short = made("rwkv6")
    del short["growth"], short["length"]
    found = section(short)
    assert "too short" in found.notes[0]
    assert not {"states-growth", "states-length"} & {figure.id for figure in found.figures}


def test_what_is_left_is_the_mean_over_channels() -> None:
    row = {"tokens": [16.0, 1e9]}
    assert left(row, 16) == pytest.approx((math.exp(-1) + 1) / 2)
