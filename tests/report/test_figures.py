from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundthink.report import branches, figures, memory, run
from groundthink.report.plot import Figure
from groundthink.report.run import Run


@pytest.fixture(scope="module")
def full(full_run: Path) -> Run:
    return run.load(full_run)


def _named(figures: list[Figure], id: str) -> Figure:
    return next(figure for figure in figures if figure.id == id)


def _trace(figure: Figure, name: str, index: int = 0) -> dict[str, Any]:
    return [trace for trace in figure.traces if trace["name"] == name][index]


@pytest.mark.tiny
def test_recorded_numbers_arrive_unchanged() -> None:
    losses = [4.1 + 0.2, 3.3, 2.2 + 1e-15]
    rows = [{"step": s, "loss": y, "bpb": y / 2, "lr": y / 1e3} for s, y in enumerate(losses)]
    val = {"step": 2, "split": "val", "loss": 2.5, "bpb": 1.25, "se": 0.1}
    levels = {"split": "val", "uniform": 4.57, "unigram": 3.1, "bigram": 2.61}
    drawn = figures.learning(
        Run(Path(), metrics={"train": rows, "val": [val], "baseline": [levels]})
    )
    loss, bits = _named(drawn, "loss"), _named(drawn, "bpb")
    assert _trace(loss, "training")["y"] == losses
    assert _trace(_named(drawn, "lr"), "learning rate")["y"] == [y / 1e3 for y in losses]
    points = _trace(loss, "validation")
    assert (points["x"], points["y"], points["error_y"]["array"]) == ([2], [2.5], [0.1])
    assert [shape["y0"] for shape in loss.layout["shapes"]] == [4.57, 3.1, 2.61]
    assert _trace(bits, "validation")["error_y"]["array"] == [0.05]
    assert [shape["y0"] for shape in bits.layout["shapes"]] == [4.57 / 2, 3.1 / 2, 2.61 / 2]


def test_the_title_states_the_recorded_change(full: Run) -> None:
    losses = [row["loss"] for row in full.val()]
    title = _named(figures.learning(full), "loss").title
    assert f"from {losses[0]:.2f} to {losses[-1]:.2f}" in title


def test_the_ratio_has_the_band_that_the_gate_recorded(full: Run) -> None:
    figure = _named(branches.balance(full), "grad-ratio")
    assert [(s["y0"], s["y1"]) for s in figure.layout["shapes"]] == [(1, 1), (0.3, 3.0)]
    assert "inside the pass band" in figure.title
    raw = _trace(figure, "R:M")
    assert raw["y"] == [row["grad_ratio"] for row in full.of("balance")]


def test_maps_hold_every_layer_and_step(full: Run) -> None:
    rows = full.of("balance")
    for key in ("gate", "share"):
        trace = _named(branches.fusion(full), f"{key}-map").traces[0]
        assert trace["x"] == [row["step"] for row in rows]
        assert trace["z"] == [list(layer) for layer in zip(*(r[key] for r in rows), strict=True)]


def test_branches_keep_their_colours(full: Run) -> None:
    drawn = [*branches.balance(full), *branches.fusion(full), *memory.states(full)]
    named = [trace for figure in drawn for trace in figure.traces if "line" in trace]
    for name, color in (("RWKV-6", "var(--rwkv6)"), ("Mamba-2", "var(--mamba2)")):
        lines = [trace["line"] for trace in named if trace["name"] == name]
        assert len(lines) > 4 and {line["color"] for line in lines} == {color}


@pytest.mark.tiny
def test_a_single_record_claims_no_movement() -> None:
    row = {"step": 1, "gate": [0.3, 0.3], "share": [0.2, 0.4], "grad_ratio": 0.5}
    drawn = branches.fusion(Run(Path(), metrics={"balance": [row]}))
    assert [figure.id for figure in drawn] == ["gate-map", "share-map", "layers"]
    assert drawn[0].title == "Gates are at 0.30"
    still = branches.fusion(Run(Path(), metrics={"balance": [row, row | {"step": 2}]}))
    assert _named(still, "gate-lines").title == "No gate moved since the first record"


def test_parts_make_the_total(full: Run) -> None:
    parts = memory.parameter_parts(full.counts)
    assert sum(number for _, number, _ in parts) == full.counts["total"]
    bar = _named(memory.budget(full), "parameters")
    assert [trace["x"] for trace in bar.traces] == [[number] for _, number, _ in parts]


def test_a_fusion_without_gates_draws_shares_alone() -> None:
    rows = [{"step": s, "gate": [0.4, 0.6], "share": [0.4, 0.6]} for s in (10, 20)]
    ids = [figure.id for figure in branches.fusion(Run(Path(), metrics={"balance": rows}))]
    assert ids == ["share-map", "layers"]


@pytest.mark.tiny
def test_nothing_recorded_draws_nothing() -> None:
    empty = Run(Path())
    groups = (figures.learning, figures.stability, figures.speed)
    more = (branches.balance, branches.fusion, memory.states, memory.budget)
    assert [figure for group in (*groups, *more) for figure in group(empty)] == []
