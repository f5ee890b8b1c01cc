"""The section of the balance probe on made-up records."""

from __future__ import annotations

import json

import pytest

from groundthink.report.probes.balance import section

pytestmark = pytest.mark.tiny
BOTH = ("rwkv6", "mamba2")


def estimate(value: float) -> dict:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 20}


def effect(scope: str, layer: int, site: str, mode: str, phi: dict, p: float = 0.001) -> dict:
    both = len(phi) == 2
    return {
        "scope": scope,
        "layer": layer,
        "site": site,
        "mode": mode,
        "n": 20,
        "loss": {"": 6.0 if mode == "zero" else 3.0},
        "phi": {branch: estimate(value) for branch, value in phi.items()},
        "interaction": estimate(-0.4) if both else None,
        "share": estimate(phi["rwkv6"] / sum(phi.values())) if both else None,
        "p": dict.fromkeys((*phi, "interaction"), p),
    }


def made(branches=BOTH, layers: int = 3) -> dict:
    worth = dict(zip(branches, (0.5, 1.5), strict=False))
    sites = ("output", "read", "memory") if len(branches) == 2 else ("memory",)
    modes = ("zero", "mean", "resample", "optimal")
    rows = [effect("all", layers - 1, site, mode, worth) for site in sites for mode in modes]
    for i in range(layers):
        rows.append(
            effect("layer", i, "memory", "zero", dict.fromkeys(branches, 0.1 * (i + 1)), p=0.5)
        )
        if len(branches) == 2:
            rows.append(effect("layer", i, "output", "mean", {"rwkv6": 0.2, "mamba2": 0.8 + i}))
    if len(branches) == 2:
        rows.append(effect("prefix", 0, "output", "zero", {"rwkv6": 0.1, "mamba2": 0.3}))
    mixing = {"share": estimate(0.25), "gate": {**estimate(0.3), "sd": 0.1, "saturated": 0.02}}
    made = {
        "texts": [{"texts": 20, "documents": 20, "length": 96, "at": 48, "chance": 4.9}],
        "effect": rows,
        "layer": [{"layer": i, **mixing} for i in range(layers)] if len(branches) == 2 else [],
        "gradients": [{"grad_rms": dict.fromkeys(branches, 1e-3), "update_ratio": {}}],
    }
    return json.loads(json.dumps({kind: rows for kind, rows in made.items() if rows}))


def test_titles_state_what_the_records_hold():
    part = section(made())
    titles = {figure.id: figure.title for figure in part.figures}
    assert titles["balance-output"] == (
        "The output of RWKV-6 is worth 0.50 nats a token, that of Mamba-2 1.5, "
        "against the best constant"
    )
    assert titles["balance-read"].startswith("What RWKV-6 reads from the past is worth 0.50 nats")
    assert titles["balance-map"] == (
        "Gates give RWKV-6 30\xa0%, and it makes 25\xa0% of the sums; it is worth 12\xa0%"
    )
    assert "Mamba-2 in layer 2 (2.8)" in titles["balance-layers-output"]
    assert titles["balance-prefix"].endswith(
        "RWKV-6 from 0.10 to 0.50 and Mamba-2 from 0.30 to 1.5"
    )
    assert "RWKV-\u20606 holds 25\xa0% of what the branches know" in part.html
    assert "the branches are redundant" in part.html
    assert "no proof of what either contributes" in part.html


def test_bars_hold_the_records_and_pale_ones_are_not_told_from_zero():
    figures = {figure.id: figure for figure in section(made()).figures}
    rwkv6, mamba2, interaction = figures["balance-output"].traces
    assert rwkv6["x"] == ["zero", "mean", "resample", "optimal"]
    assert (rwkv6["y"], mamba2["y"], interaction["y"]) == ([0.5] * 4, [1.5] * 4, [-0.4] * 4)
    assert rwkv6["error_y"]["array"] == pytest.approx([0.01] * 4)
    assert set(rwkv6["marker"]["opacity"]) == {1.0}
    assert set(figures["balance-layers-memory"].traces[0]["marker"]["opacity"]) == {0.35}
    caption = figures["balance-output"].caption
    assert caption.endswith("Worse than guessing (4.90), so broken rather than deprived: zero.")


def test_a_model_of_one_mixer_shows_its_memory():
    part = section(made(("mamba2",)))
    assert [figure.id for figure in part.figures] == ["balance-memory", "balance-layers-memory"]
    assert part.figures[0].title.startswith(
        "What Mamba-2 remembers is worth 0.50 nats a token, with"
    )
    assert part.html == ""


def test_an_open_interval_is_drawn_without_a_bar():
    rows = made()
    for row in rows["effect"]:
        for value in (*row["phi"].values(), row["interaction"]):
            value["low"] = value["high"] = None
    part = section(rows)
    assert part.figures[0].traces[0]["error_y"]["array"] == [None] * 4
    assert "as far as these texts tell" in part.html


def test_nothing_recorded_draws_nothing():
    assert not section({})
