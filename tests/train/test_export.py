"""metrics.csv and TensorBoard events from records."""

from __future__ import annotations

import csv

import pytest

from groundthink.records import Records
from groundthink.train.export import TensorBoard, scalars, write_csv

pytestmark = pytest.mark.tiny


def write(folder):
    records = Records(folder / "metrics.jsonl", {"seed": 0})
    yield records.append("train", step=1, loss=3.0, lr=1e-3)
    yield records.append(
        "balance", step=2, grad_ratio=0.5, gate=[0.3, 0.4], grad_rms={"other": 0.1}
    )
    yield records.append("train", step=2, loss=2.0, lr=2e-3)
    yield records.append("val", step=2, split="val", loss=2.5, best=True)
    yield records.append("sample", step=2, prompt="a", text="b")


def test_csv_has_one_row_a_step(tmp_path):
    list(write(tmp_path))
    write_csv(tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert rows[0]["loss"] == "3.0" and rows[0]["val/loss"] == ""
    assert rows[1]["val/loss"] == "2.5"
    assert (rows[1]["balance/gate/1"], rows[1]["balance/grad_rms/other"]) == ("0.4", "0.1")


def test_scalars_leave_out_what_is_no_number():
    record = {"kind": "val", "step": 3, "loss": 1.5, "se": None, "best": True, "gate": [0.1, None]}
    assert dict(scalars(record)) == {"loss": 1.5, "gate/0": 0.1}


def test_tensorboard_holds_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, step=0)
    for record in write(tmp_path):
        board.log(record)
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.0)]
    assert [e.value for e in events.Scalars("val/loss")] == [2.5]
