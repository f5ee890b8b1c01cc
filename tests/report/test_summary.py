from __future__ import annotations

from pathlib import Path

import pytest

from groundthink.report import summary
from groundthink.report.run import Run

pytestmark = pytest.mark.tiny

CONFIG = {
    "model": {"layout": "parallel"},
    "data": {"corpus": "python-docs"},
    "train": {"steps": 2000},
}
TRAIN = {"kind": "train", "step": 2000, "loss": 2.4}
VAL = {"kind": "val", "step": 2000, "split": "val", "loss": 2.31, "bpb": 3.21, "se": 0.01}
COUNTS = {"kind": "provenance", "counts": {"total": 5_224_960, "rwkv6": 2, "mamba2": 1}}
BASELINE = {"kind": "baseline", "split": "val", "uniform": 4.57, "unigram": 3.1, "bigram": 2.61}
END = {"kind": "event", "what": "finished", "step": 2000}


def _run(*records: dict, layout: str = "parallel") -> Run:
    kinds: dict[str, list] = {}
    for record in records:
        kinds.setdefault(record["kind"], []).append(record)
    return Run(Path("runs/x"), CONFIG | {"model": {"layout": layout}}, metrics=kinds)


def test_the_outcome_in_one_sentence() -> None:
    assert summary.outcome(_run(COUNTS, TRAIN, VAL, BASELINE, END)) == (
        "5.2M-parameter RWKV-6 + Mamba-2 hybrid trained 2,000 steps on python-docs: "
        "validation 2.31 nats per token (3.21 bits per byte), below the bigram baseline (2.61)."
    )


@pytest.mark.parametrize(
    ("loss", "se", "words"),
    [
        (2.5, 0.01, "below the bigram"),
        (2.7, 0.01, "above the bigram"),
        (2.6, 0.01, "not told apart from the bigram"),
        (2.6, None, "below the bigram"),
    ],
)
def test_a_claim_needs_more_than_the_error(loss: float, se: float | None, words: str) -> None:
    val = VAL | {"loss": loss, "se": se}
    assert words in summary.outcome(_run(TRAIN, val, BASELINE, END))


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        ("finished", "finished", "trained 812 steps"),
        ("interrupted", "interrupted", "interrupted after 812 of 2,000 steps"),
        ("nonfinite", "diverged", "the loss was not finite"),
        ("started", "unfinished", "812 of 2,000 steps on python-docs and records no end yet"),
        ("resumed", "unfinished", "not validated"),
    ],
)
def test_how_a_run_ended(event: str, status: str, words: str) -> None:
    run = _run(TRAIN | {"step": 812}, {"kind": "event", "what": event})
    assert summary.status(run) == status
    assert words in summary.outcome(run)


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        ({"rwkv6": 5, "mamba2": 3, "attention": 0}, "RWKV-6 + Mamba-2 hybrid"),
        ({"rwkv6": 5, "mamba2": 0}, "RWKV-6 model"),
        ({"mamba2": 5, "attention": 1}, "Mamba-2 + attention hybrid"),
        ({}, "model"),
    ],
)
def test_the_kind_of_model(counts: dict, kind: str) -> None:
    assert summary.mixers(_run({"kind": "provenance", "counts": counts})) == kind
    assert summary.mixers(_run(layout="gpt2")) == "GPT-2 model"


def test_a_better_earlier_validation_is_named() -> None:
    best = VAL | {"step": 1800, "loss": 2.29}
    tiles = {tile.label: tile for tile in summary.tiles(_run(best, VAL))}
    assert tiles["Validation loss"].value == "2.31"
    assert (tiles["Best validation"].value, tiles["Best validation"].detail) == (
        "2.29",
        "step 1,800",
    )
