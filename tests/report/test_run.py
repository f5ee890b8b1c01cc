from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from groundthink.errors import UserError
from groundthink.report import run

pytestmark = pytest.mark.tiny


def _train(*pairs: tuple[int, float]) -> list[dict]:
    return [{"kind": "train", "step": step, "loss": loss} for step, loss in pairs]


def test_a_resume_replaces_what_came_after_it() -> None:
    lines = _train((1, 5.0), (2, 4.0), (3, 3.0))
    lines += [{"kind": "val", "step": 3, "loss": 3.1}]
    lines += [{"kind": "event", "what": "resumed", "step": 1}, *_train((2, 4.5))]
    kinds = run.timeline(lines)
    assert [row["loss"] for row in kinds["train"]] == [5.0, 4.5]
    assert kinds["val"] == []


def test_the_last_record_of_a_step_wins() -> None:
    kinds = run.timeline(_train((1, 5.0), (2, 4.0), (2, 4.1)))
    assert [row["loss"] for row in kinds["train"]] == [5.0, 4.1]


def test_splits_and_prompts_of_one_step_stand_side_by_side() -> None:
    lines = [
        {"kind": "val", "step": 1, "split": split, "loss": loss}
        for split, loss in (("val", 1.0), ("test", 2.0), ("val", 3.0))
    ]
    assert [row["loss"] for row in run.timeline(lines)["val"]] == [2.0, 3.0]


def test_the_newest_finding_wins_in_its_old_place() -> None:
    lines = [
        {"kind": "gate", "id": id, "name": "x", "value": value}
        for id, value in (("G1", 1), ("G2", 2), ("G1", 3))
    ]
    assert [row["value"] for row in run.newest(lines, "gate", "id", "name")] == [3, 2]


def test_no_folder_no_run_and_damage_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        run.load(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no run"):
        run.load(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no run"):
        run.load(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "st\n{}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        run.load(tmp_path)


def test_a_line_still_being_written_is_left_out(make_run: Callable[..., Path]) -> None:
    folder = make_run(steps=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4, "lo')
    assert run.load(folder).last("train")["step"] == 3
