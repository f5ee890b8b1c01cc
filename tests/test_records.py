from __future__ import annotations

import json

import pytest
import torch

from groundthink.records import Records, environment, read

pytestmark = pytest.mark.tiny


def test_records_come_back_in_order_behind_their_provenance(tmp_path):
    records = Records(tmp_path / "deep" / "m.jsonl", {"seed": 3})
    records.append("train", step=1, loss=2.5)
    records.append("val", step=1, loss=torch.tensor(2.0), shares=(0.1, 0.2))
    first, *rest = read(records.path)
    assert (first["kind"], first["seed"]) == ("provenance", 3)
    assert [r["kind"] for r in rest] == ["train", "val"]
    assert rest[1]["loss"] == 2.0 and rest[1]["shares"] == [0.1, 0.2]
    assert read(records.path, "val") == rest[1:]


def test_a_number_that_is_not_finite_is_null_and_the_line_is_json(tmp_path):
    records = Records(tmp_path / "m.jsonl", {})
    records.append("train", loss=float("nan"), norms={"a": float("inf")})
    assert read(records.path, "train")[0] | {"time": 0} == {
        "kind": "train", "time": 0, "loss": None, "norms": {"a": None},
    }  # fmt: skip
    json.loads(records.path.read_text().splitlines()[-1], parse_constant=pytest.fail)


def test_an_unfinished_line_is_left_out(tmp_path):
    records = Records(tmp_path / "m.jsonl", {})
    records.append("train", step=1)
    with records.path.open("a") as file:
        file.write('{"kind": "tra')
    assert len(read(records.path)) == 2
    assert read(tmp_path / "nothing.jsonl") == []


def test_the_environment_names_versions_and_device():
    assert {"torch", "python", "git", "device", "threads"} <= environment().keys()
